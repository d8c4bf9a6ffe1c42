"""Observers that end a stage in the middle."""

from small import Remembers


class Stopped(Exception):
    """What ends a build in the middle."""


class StopsAfter(Remembers):
    def __init__(self, epochs, how):
        super().__init__()
        self.epochs, self.how = epochs, how

    def advance(self, stage, done, total, note):
        super().advance(stage, done, total, note)
        if done == self.epochs:
            self.how()


def stop():
    raise Stopped
