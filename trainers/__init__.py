"""What one trial does: data, compress, fine-tune, measure, write the packed model; it runs without Ray and Optuna.

Each room imports only those after it: `train` (networks from scratch) and `__main__`, `trial`, `spec`, `estimate` and
`effects`, `training` (the loop and its parts), `start` (weights before the first step) and `evaluation`, `data`,
`runtime` (the machine).
"""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from trainers.data.dataset import Data, Split
    from trainers.data.load import load_data
    from trainers.data.spec import DataSpec
    from trainers.evaluation import evaluate
    from trainers.spec import TrialSpec
    from trainers.train import train_model
    from trainers.training.recipe import RECIPES, TrainingRecipe
    from trainers.trial import Trial, TrialResult, run_trial
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "trainers.data.dataset": ("Data", "Split"),
            "trainers.data.load": ("load_data",),
            "trainers.data.spec": ("DataSpec",),
            "trainers.evaluation": ("evaluate",),
            "trainers.spec": ("TrialSpec",),
            "trainers.train": ("train_model",),
            "trainers.training.recipe": ("RECIPES", "TrainingRecipe"),
            "trainers.trial": ("Trial", "TrialResult", "run_trial"),
        },
    )

__all__ = [
    "RECIPES",
    "Data",
    "DataSpec",
    "Split",
    "TrainingRecipe",
    "Trial",
    "TrialResult",
    "TrialSpec",
    "evaluate",
    "load_data",
    "run_trial",
    "train_model",
]
