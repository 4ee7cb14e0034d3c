from .analysis import Settings as Settings
from .analysis import analyze as analyze
from .summary import Summary as Summary
