"""Sides of a measurement for tests/test_bench.py, in a module that starts without PyTorch."""

import itertools
import multiprocessing
import time


def fails():
    raise ValueError("no such thing")


def tells_its_process():
    calls = itertools.count(1)
    return lambda: (next(calls), multiprocessing.parent_process().pid)


def has_a_child():
    """Work in a child, as the baseline's loader does."""

    def work():
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.map(abs, [0, -1, -2])

    return work


def slower_twice():
    naps = iter((0.2, 0.0, 0.2))
    return lambda: time.sleep(next(naps))
