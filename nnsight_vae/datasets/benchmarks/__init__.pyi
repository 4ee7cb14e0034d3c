from .read_causal3dident import causal3dident as causal3dident
from .read_celeba import celeba as celeba
from .read_dsprites import dsprites as dsprites
from .read_mpi3d import mpi3d as mpi3d
from .read_shapes3d import shapes3d as shapes3d
from .read_small_norb import small_norb as small_norb
