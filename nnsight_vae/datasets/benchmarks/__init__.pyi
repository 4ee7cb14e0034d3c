from .causal3dident import causal3dident as causal3dident
from .celeba import celeba as celeba
from .dsprites import dsprites as dsprites
from .mpi3d import mpi3d as mpi3d
from .shapes3d import shapes3d as shapes3d
from .small_norb import small_norb as small_norb
