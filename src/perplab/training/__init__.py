"""Making models: the trainer and the parts it is made of.

`train` is the verb. Schedules, checkpoints, distribution and compilation are pieces that other training loops use too.
"""

from perplab.training.config import TrainConfig
from perplab.training.heldout import heldout_bits_per_byte
from perplab.training.new_model import new_decoder
from perplab.training.run import train
from perplab.training.schedules import Schedule, schedule_of
from perplab.training.self_replay import self_replay
from perplab.training.trainer import TrainingInterrupted

__all__ = [
    "Schedule",
    "TrainConfig",
    "TrainingInterrupted",
    "heldout_bits_per_byte",
    "new_decoder",
    "schedule_of",
    "self_replay",
    "train",
]
