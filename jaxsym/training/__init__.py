"""Training as one pure function of a key, so that hundreds of networks train in one program."""

from jaxsym.training import initial, probes
from jaxsym.training.loop import Probe, Snapshot, Trained, make_train

__all__ = ["Probe", "Snapshot", "Trained", "initial", "make_train", "probes"]
