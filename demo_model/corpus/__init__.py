"""The demo model's training text, all of it generated.

`documents(seed, count)` is the corpus. Every generator is a pure function of the random source it
is given, so that a seed names a corpus on any machine.
"""

from demo_model.corpus.arithmetic import Problem, held_out_problems, held_out_sums, result_in
from demo_model.corpus.mixture import Document, Segment, documents

__all__ = ["Document", "Problem", "Segment", "documents", "held_out_problems", "held_out_sums", "result_in"]
