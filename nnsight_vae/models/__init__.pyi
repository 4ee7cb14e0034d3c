from .bundle import load_module as load_module, read_record as read_record, zoo as zoo
from .families import (
    OBJECTIVES as OBJECTIVES,
    BetaTCObjective as BetaTCObjective,
    DIPObjective as DIPObjective,
    FactorObjective as FactorObjective,
    VQObjective as VQObjective,
)
from .files import load_weights as load_weights
from .labels import Labels as Labels
from .networks import MLPVAE as MLPVAE, ConvVAE as ConvVAE, ResidualVAE as ResidualVAE
from .objectives import Objective as Objective, summed_beta as summed_beta
from .training import Trained as Trained, train as train
from .vq import VQVAE as VQVAE
