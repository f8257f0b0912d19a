"""How long an engine takes, learnt from its runs: a + b · images."""

from __future__ import annotations

__all__ = ["LatencyModel"]

# A run counts half after 14 more: a machine that slows down is believed within a second or so.
_FORGET = 0.95
# Below this share of the squared mean, what is known of other batch sizes has been forgotten.
_LEAST_SPREAD = 1e-3


class LatencyModel:
    """A line through the run times, fitted as they come.

    ``seconds ≈ a + b · images`` with ``a, b ≥ 0``: weighted least squares in which every
    observation counts 5 % less with each later one (recursive least squares with exponential
    forgetting; Haykin, Adaptive Filter Theory, 4th ed., section 9.3). The optimum under the two
    bounds has a closed form: if the free one breaks a bound, the bounded one lies on it.

    While only one batch size is known, every line through its mean fits. The least of them is
    taken for each number of images, because a request is refused on what it predicts: as much as
    was seen for larger batches, in proportion for smaller ones.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._mean_images = 0.0
        self._mean_s = 0.0
        # Weighted sums of squares and products about the means.
        self._spread = 0.0
        self._joint = 0.0

    def observe(self, images: int, seconds: float) -> None:
        """Learn from a run.

        Parameters
        ----------
        images : in the batch, 1 or more.
        seconds : how long it took, 0 or more.
        """
        self._weight = _FORGET * self._weight + 1.0
        off_images = images - self._mean_images
        self._mean_images += off_images / self._weight
        self._mean_s += (seconds - self._mean_s) / self._weight
        self._spread = _FORGET * self._spread + off_images * (images - self._mean_images)
        self._joint = _FORGET * self._joint + off_images * (seconds - self._mean_s)

    def predict(self, images: int) -> float:
        """Return the seconds that a batch takes; 0 before anything was observed.

        Never negative, and never less for more images.
        """
        if not self._weight:
            return 0.0
        if self._spread <= _LEAST_SPREAD * self._weight * self._mean_images**2:
            return self._mean_s * min(1.0, images / self._mean_images)
        slope = self._joint / self._spread
        if slope <= 0:
            return self._mean_s
        fixed = self._mean_s - slope * self._mean_images
        if fixed < 0:
            about_zero = self._weight * self._mean_images
            slope = (self._joint + about_zero * self._mean_s) / (
                self._spread + about_zero * self._mean_images
            )
            fixed = 0.0
        return fixed + slope * images
