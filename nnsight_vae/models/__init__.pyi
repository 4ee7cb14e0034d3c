from .bundle import load_module as load_module, read_record as read_record, zoo as zoo
from .files import load_weights as load_weights
from .networks import MLPVAE as MLPVAE, ConvVAE as ConvVAE
from .objectives import OBJECTIVES as OBJECTIVES, Objective as Objective
from .training import Labels as Labels, Trained as Trained, train as train
