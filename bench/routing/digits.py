"""Off-policy estimators on scikit-learn's digits, by the protocol of the Open Bandit Pipeline (st-tech/zr-obp, examples/multiclass), with its published errors beside.

Each run: 70 % of the digits are logged by a logistic regression that is right in a share `ALPHA_B` of its choices and uniform in the others; a random forest
(share `ALPHA_E`) is the policy to be evaluated; a boosted regression, cross-fitted in three folds, predicts rewards. Errors are relative to the true value.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.evaluate import Log, estimate

__all__ = ["PUBLISHED", "run", "table"]

RUNS = 30
ALPHA_B, ALPHA_E = 0.4, 0.9
_SEED = 12345
PUBLISHED = {
    "dm": (0.436541, 0.017629),
    "ips": (0.030288, 0.024506),
    "snips": (0.022764, 0.017917),
    "dr": (0.016156, 0.012679),
    "sndr": (0.022082, 0.016865),
    "dros": (0.015868, 0.012537),
}
"""Mean and standard deviation over its 30 runs; there DRos chooses its shrinkage by SLOPE."""


def run(runs: int = RUNS) -> dict[str, Any]:
    """Estimator → relative errors, mean and standard deviation, and whether the published mean is within two standard errors of the difference."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - only in the benchmark's environment

    x, y = load_digits(return_X_y=True)
    errors: dict[str, list[float]] = {name: [] for name in PUBLISHED}
    covered = dict.fromkeys(PUBLISHED, 0)
    for number in range(runs):
        log, value = _logged(x, y.astype(int), number)
        for name in PUBLISHED:
            found = estimate(log, name)
            errors[name].append(abs(found.value - value) / value)
            covered[name] += found.low <= value <= found.high
    return {name: _beside(name, np.array(of), covered[name] / runs) for name, of in errors.items()}


def _beside(name: str, errors: NDArray[np.float64], covered: float) -> dict[str, Any]:
    mean, deviation = float(errors.mean()), float(errors.std(ddof=1))
    published, spread = PUBLISHED[name]
    allowed = 2 * float(np.hypot(deviation / len(errors) ** 0.5, spread / RUNS**0.5))
    return {
        "mean": mean,
        "sd": deviation,
        "published": published,
        "published_sd": spread,
        "agrees": abs(mean - published) <= allowed,
        "not_worse": mean <= published + allowed,
        "covered": covered,
        "errors": errors.tolist(),
    }


def _logged(x: NDArray[Any], y: NDArray[Any], number: int) -> tuple[Log, float]:
    """One run's log, and the evaluated policy's true value."""
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    x_train, x_eval, y_train, y_eval = train_test_split(x, y, test_size=0.7, random_state=number)
    rows, actions = np.arange(len(y_eval)), int(y.max()) + 1
    behaviour = LogisticRegression(max_iter=10_000, C=100, random_state=_SEED).fit(x_train, y_train)
    target = RandomForestClassifier(n_estimators=30, max_depth=5, min_samples_leaf=10, random_state=_SEED).fit(
        x_train, y_train
    )
    pi_b, pi_e = (
        _mixed(model.predict(x_eval), share, actions) for model, share in ((behaviour, ALPHA_B), (target, ALPHA_E))
    )
    random = np.random.RandomState(number)  # the generator of the protocol
    action = np.array([random.choice(actions, p=chances) for chances in pi_b])
    reward = (action == y_eval).astype(float)
    predicted = _predicted(x_eval, action, reward, actions)
    log = Log(reward, pi_e[rows, action] / pi_b[rows, action], predicted[rows, action], (pi_e * predicted).sum(axis=1))
    return log, float(pi_e[rows, y_eval].mean())


def _mixed(choices: NDArray[Any], share: float, actions: int) -> NDArray[np.float64]:
    """A deterministic policy, mixed with the uniform one."""
    return np.full((len(choices), actions), (1 - share) / actions) + share * np.eye(actions)[choices]


def _predicted(x: NDArray[Any], action: NDArray[Any], reward: NDArray[Any], actions: int) -> NDArray[np.float64]:
    """Round x action: the reward as a model sees it that has not seen the round."""
    from sklearn.ensemble import GradientBoostingClassifier  # noqa: PLC0415
    from sklearn.model_selection import KFold  # noqa: PLC0415

    one_hot = np.eye(actions, dtype=int)
    found = np.zeros((len(x), actions))
    for train, test in KFold(n_splits=3, shuffle=True, random_state=_SEED).split(x):
        model = GradientBoostingClassifier(
            n_estimators=30, learning_rate=0.01, max_depth=5, min_samples_leaf=10, random_state=_SEED
        )
        model.fit(np.c_[x[train], one_hot[action[train]]], reward[train])
        for each in range(actions):
            found[test, each] = model.predict_proba(np.c_[x[test], np.tile(one_hot[each], (len(test), 1))])[:, 1]
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| relative error on digits | mean ± sd of 30 runs | published | agrees | 95 % interval covers |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {of['mean']:.3f} ± {of['sd']:.3f} | {of['published']:.3f} ± {of['published_sd']:.3f} | {'yes' if of['agrees'] else '**no**'} | {of['covered']:.0%} |"
        for name, of in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)))
