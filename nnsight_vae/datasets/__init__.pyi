from .arrays import Arrays as Arrays
from .arrays import from_arrays as from_arrays
from .base import Batch as Batch
from .base import Dataset as Dataset
from .files import from_path as from_path
from .loading import load as load
from .procedural import Procedural as Procedural
