"""Non-negative least squares by active sets, on the normal equations.

Source: R. Bro, S. de Jong, "A fast non-negativity-constrained least squares algorithm", Journal of Chemometrics 11
(1997), after C. Lawson, R. Hanson, "Solving Least Squares Problems" (1974), chapter 23: what scipy.optimize.nnls
does, without a dependency on it. Exact, where a gradient method stops near the answer if experts resemble each other.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDS = 3
"""Times the number of variables, after which rounding is to blame for another round; scipy's figure."""


def nnls(gram: Floats, target: Floats) -> Floats:
    """Find the c >= 0, [n], for which c' G c / 2 - b' c is smallest, with G [n, n] positive definite and b [n]."""
    n = len(target)
    c, free = np.zeros(n), np.zeros(n, dtype=bool)
    tolerance = 10 * np.finfo(np.float64).eps * n * max(np.abs(target).max(initial=0), np.abs(gram).max(initial=0))
    for _ in range(_ROUNDS * n):
        gradient = np.where(free, -np.inf, target - gram @ c)
        entering = int(gradient.argmax())
        if gradient[entering] <= tolerance:
            break
        free[entering] = True
        while free.any():
            rows = np.flatnonzero(free)
            wanted = np.linalg.solve(gram[np.ix_(rows, rows)], target[rows])
            if (wanted > 0).all():
                c[rows] = wanted
                break
            # As far as the first bound on the way, and no farther.
            now, blocked = c[rows], wanted <= 0
            steps = np.where(blocked, now / np.where(blocked & (now > 0), now - wanted, 1), 1)
            now += steps.min() * (wanted - now)
            now[steps == steps.min()] = 0
            c[rows] = now
            free[rows] = now > 0
        c[~free] = 0
    return c
