"""Training as one pure function of a key, so that hundreds of networks train in one program."""

from jaxsym.training import initial, probes
from jaxsym.training.loop import Probe, Run, Snapshot, Train, Trained, make_train

__all__ = ["Probe", "Run", "Snapshot", "Train", "Trained", "initial", "make_train", "probes"]
