from . import benchmarks as benchmarks
from .arrays import Arrays as Arrays
from .base import Batch as Batch, Dataset as Dataset
from .files import from_path as from_path
from .flow import FLOW as FLOW
from .grid import Grid as Grid
from .linear import LINEAR_SPRITES as LINEAR_SPRITES, linear_sprites as linear_sprites
from .loading import load as load
from .own_arrays import from_arrays as from_arrays
from .procedural import Procedural as Procedural
from .rendering import Renderer as Renderer
from .room import ROOM as ROOM
from .sprites import SPRITES as SPRITES
