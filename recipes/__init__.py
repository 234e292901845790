"""Training and prediction with real pictures: one pipeline and one recipe for the three frameworks.

    python -m recipes train --framework torch --model se_resnet20 --data digits --epochs 2

`data.py` reads pictures, `batches.py` makes the same augmented batches for every framework, `recipe.py` holds
the settings, and a trainer for each framework runs them as its users do: with Lightning, `fit` or
`MonitoredTrainingSession`.
"""
