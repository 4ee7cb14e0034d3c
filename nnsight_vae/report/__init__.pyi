from .analysis import Settings as Settings, analyze as analyze
from .summary import Summary as Summary
