from .analysis import analyze as analyze
from .run import Settings as Settings
from .summary import Summary as Summary
