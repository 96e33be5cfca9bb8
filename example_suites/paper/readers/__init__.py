"""Questions with reference answers, from the project's own files and from the official ones."""

from readers.files import read_questions
from readers.question import BadFileError, Question

__all__ = ["BadFileError", "Question", "read_questions"]
