from .branching import Separation as Separation, Separations as Separations, separation as separation
from .communities import Modularity as Modularity, modularity as modularity
from .degrees import Hub as Hub, Hubs as Hubs, PolysemanticHub as PolysemanticHub, hubs as hubs
from .edges import EdgeScores as EdgeScores
from .enrichment import Motif as Motif, Motifs as Motifs, motifs as motifs
from .evaluate import faithfulness as faithfulness
from .export import read_circuit as read_circuit
from .faithfulness_result import Faithfulness as Faithfulness
from .overlaps import Overlap as Overlap, Overlaps as Overlaps, overlap as overlap
from .pipeline import NullArm as NullArm, PipelineNull as PipelineNull, pipeline_null as pipeline_null
from .scores import score_edges as score_edges
from .search import circuit_from as circuit_from, extract_circuit as extract_circuit
from .selectivity import Specificity as Specificity, UnitSpecificity as UnitSpecificity, specificity as specificity
from .unlearned import reinitialised as reinitialised
