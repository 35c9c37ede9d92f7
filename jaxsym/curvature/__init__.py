"""Curvature of losses: products, spectra, traces and densities, and which flat directions a symmetry explains."""

from jaxsym.curvature.estimates import Density, Trace, density, trace
from jaxsym.curvature.measures import Sharpness, sharpness
from jaxsym.curvature.null_space import Flat, effective_dimension, flat
from jaxsym.curvature.products import block, empirical_fisher_vp, fisher_vp, ggn_vp, hvp
from jaxsym.curvature.spectra import Spectrum, hessian, spectrum

__all__ = [
    "Density",
    "Flat",
    "Sharpness",
    "Spectrum",
    "Trace",
    "block",
    "density",
    "effective_dimension",
    "empirical_fisher_vp",
    "fisher_vp",
    "flat",
    "ggn_vp",
    "hessian",
    "hvp",
    "sharpness",
    "spectrum",
    "trace",
]
