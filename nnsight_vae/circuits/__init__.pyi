from .edges import EdgeScores as EdgeScores
from .evaluate import faithfulness as faithfulness
from .export import read_circuit as read_circuit
from .faithfulness_result import Faithfulness as Faithfulness
from .motifs import Motif as Motif, Motifs as Motifs, motifs as motifs
from .scores import score_edges as score_edges
from .search import circuit_from as circuit_from, extract_circuit as extract_circuit
