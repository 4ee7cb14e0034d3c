from . import benchmarks as benchmarks
from .arrays import Arrays as Arrays, from_arrays as from_arrays
from .base import Batch as Batch, Dataset as Dataset
from .files import from_path as from_path
from .grid import Grid as Grid
from .loading import load as load
from .procedural import Procedural as Procedural
