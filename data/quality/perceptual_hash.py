"""Near duplicates: images that look alike, found by a perceptual hash and confirmed by their pixels.

Shapes: N images, P pairs, S stored pixels per side, F values of a reduced image.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from data.images.decode import Pixels
from data.quality.traits import shrink

Hashes = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.unsignedinteger]
Pairs = npt.NDArray[np.int64]
Reduced = npt.NDArray[np.float64]

MAX_BITS = 6
"""Maximum number of different bits, of 64, between the hashes of a pair. Half of the photographs that were scaled,
recompressed or brightened differ in at most 2 bits."""

MAX_NEIGHBOURS = 500
"""Maximum number of hashes with the same key with which a hash is compared. Without a limit, all pairs of a hundred
thousand scans of nearly empty pages would be compared."""

MAX_PAIRS = 100_000
"""Maximum number of pairs that are compared by their pixels, which takes some 0.1 ms per pair."""

COMPARED_TOGETHER = 1024
"""Number of pairs whose reduced images are in memory at the same time."""

READ_TOGETHER = 16
"""Number of images whose pixels are in memory at the same time."""

SIDE = 16
"""Pixels per side for the comparison of two images. This size averages out the effects of compression."""

MIN_CORRELATION = 0.99
"""The nearest two of scikit-learn's 1,797 digits, which are simple shapes, reach 0.9892. A JPEG of quality 50 keeps a
photograph above 0.995."""

MAX_DIFFERENCE = 3.0
"""Root mean square in grey levels of 255, for nearly uniform images, whose correlation means nothing."""


def near_groups(hashes: Hashes, pixels_of: Callable[[Sequence[int]], Pixels]) -> tuple[list[list[int]], int]:
    """Group images that look alike. Groups and their members are in order.

    A pair that earlier pairs have already joined is not compared, which spares most pairs of a film's frames.

    Args:
        hashes: uint64 [N], of `data.quality.traits`.
        pixels_of: returns the prepared images of ascending indices, uint8 [len(indices), S, S, 3].

    Returns:
        The groups, and the number of pairs with near hashes that were not compared, because of MAX_PAIRS.

    """
    pairs, alike, num_compared = near_pairs(hashes), np.empty((0, 2), dtype=np.int64), 0
    for start in range(0, len(pairs), COMPARED_TOGETHER):
        if num_compared >= MAX_PAIRS:
            return connected(alike), len(pairs) - start
        block = pairs[start : start + COMPARED_TOGETHER]
        if len(alike):
            one, other = _components(alike, len(hashes))[block.T]
            block = block[one != other]
        num_compared += len(block)
        if len(block):
            alike = np.concatenate([alike, _confirmed(block, pixels_of)])
    return connected(alike), 0


def _confirmed(pairs: Pairs, pixels_of: Callable[[Sequence[int]], Pixels]) -> Pairs:
    """Keep the pairs that look alike. Each image is read once."""
    members, places = np.unique(pairs, return_inverse=True)
    groups = (members[start : start + READ_TOGETHER].tolist() for start in range(0, len(members), READ_TOGETHER))
    looks = np.concatenate([reduced(pixels_of(group)) for group in groups])
    return pairs[look_alike(*looks[places.reshape(pairs.shape).T])]


def near_pairs(hashes: Hashes, max_bits: int = MAX_BITS) -> Pairs:
    """Find the pairs of hashes, uint64 [N], that differ in at most `max_bits` bits. Returns int64 [P, 2], in order.

    The bits are cut into `max_bits + 2` bands. Each different bit changes one band, so two bands stay equal. Therefore
    hashes are sorted by every two bands, and hashes with equal bands are compared, as in multi-index hashing (Norouzi,
    Punjani and Fleet, CVPR 2012). Equal hashes are only paired with the first of them.
    """
    unique, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    found = [first[pair] for key in _keys(unique, max_bits) for pair in _pairs_of_equal_keys(unique, key, max_bits)]
    others = np.flatnonzero(first[group] != np.arange(len(hashes)))
    found.append(np.stack([first[group[others]], others], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _keys(hashes: Hashes, max_bits: int) -> Iterator[Keys]:
    """Yield every two bands of each hash as one number. With `MAX_BITS`, it has 16 bits, which NumPy sorts fastest."""
    edges = np.linspace(0, 64, max_bits + 3).round().astype(np.uint64)
    width = np.diff(edges).max()
    kind = np.uint16 if width <= 8 else np.uint64
    bands = [hashes >> start & (2 ** (end - start) - 1) for start, end in pairwise(edges)]
    for one, other in combinations(bands, 2):
        yield (one << width | other).astype(kind)


def _pairs_of_equal_keys(hashes: Hashes, keys: Keys, max_bits: int) -> Iterator[Pairs]:
    """Compare each hash with the next hash of equal key, then with the one after that, until no keys are equal."""
    order = np.argsort(keys, kind="stable")  # the hashes are sorted, so neighbours with equal keys are similar
    keys, hashes = keys[order], hashes[order]
    left = np.arange(len(keys))
    for step in range(1, MAX_NEIGHBOURS + 1):
        left = left[left + step < len(keys)]
        left = left[keys[left] == keys[left + step]]
        if not len(left):
            return
        near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= max_bits]
        yield np.stack([order[near], order[near + step]], axis=1)


def look_alike(left: Reduced, right: Reduced) -> npt.NDArray[np.bool_]:
    """Compare reduced images [..., F], regardless of brightness and contrast. Returns bool [...]."""
    is_close = np.sqrt(np.square(left - right).mean(axis=-1)) <= MAX_DIFFERENCE
    left, right = left - left.mean(axis=-1, keepdims=True), right - right.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.square(left).sum(axis=-1) * np.square(right).sum(axis=-1))
    alike: npt.NDArray[np.bool_] = is_close | ((scale > 0) & ((left * right).sum(axis=-1) >= MIN_CORRELATION * scale))
    return alike


def reduced(images: Pixels) -> Reduced:
    """Reduce images, uint8 [N, S, S, 3], to values [N, F] for the comparison."""
    return shrink(images, SIDE).reshape(len(images), -1).astype(np.float64)


def connected(pairs: Pairs) -> list[list[int]]:
    """Join pairs, int64 [P, 2], that share a member into groups. Groups and their members are in order."""
    if not len(pairs):
        return []
    members, places = np.unique(pairs, return_inverse=True)
    groups = _components(places.reshape(pairs.shape), len(members))
    order = np.argsort(groups, kind="stable")
    return sorted(some.tolist() for some in np.split(members[order], np.flatnonzero(np.diff(groups[order])) + 1))


def _components(pairs: Pairs, number: int) -> npt.NDArray[np.int32]:
    """Return the number of the group of each of `number` indices, which `pairs` join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(number, number))
    components: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return components
