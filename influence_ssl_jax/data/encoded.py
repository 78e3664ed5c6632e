"""Sources whose images are stored encoded, one by one."""

import abc

from influence_ssl_jax.data.source import Example, OpenSource, UnreadableExample, content_digest
from influence_ssl_jax.data.transform import UndecodableImage, decode


class Encoded(OpenSource):
    """A source that gives the encoded bytes, the name and the class of an example: reading and digests follow."""

    @abc.abstractmethod
    def _stored(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            UndecodableImage: There is none, or it cannot be used.
        """

    @abc.abstractmethod
    def _id(self, index: int) -> str:
        """Return the name of one example."""

    @abc.abstractmethod
    def _class(self, index: int) -> int:
        """Return the class of one example, −1 where it has none."""

    def read(self, index: int) -> Example:
        """Decode one image."""
        try:
            stored = self._stored(index)
            image = decode(stored)
        except UndecodableImage as error:
            raise UnreadableExample(index, self._id(index), str(error)) from error
        label = self._class(index)
        return Example(index, self._id(index), image, label if label >= 0 else None, content_digest(stored))

    def content(self, index: int) -> bytes:
        """The digest of the encoded bytes; nothing is decoded."""
        try:
            return content_digest(self._stored(index))
        except UndecodableImage as error:
            raise UnreadableExample(index, self._id(index), str(error)) from error
