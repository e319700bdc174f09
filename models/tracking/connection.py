"""Connection to an MLflow server or database that may be down."""

import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from core.errors import UserError, one_line

ANSWER_SECONDS = 10
MISSING = tuple(map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)))
"""MLflow's error codes for a run, model or alias that does not exist; the second code is for a malformed name."""


def connect(uri: str) -> MlflowClient:
    """Open the tracking server, or the database, at `uri`.

    Raises:
        UserError: the server does not answer (MLflow itself would retry for four minutes), or MLflow cannot use it.

    """
    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    require_answer(uri)
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri)
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise UserError(f"MLflow cannot use {without_password(uri)}: {one_line(error)}", exit_code=1) from error
    return client


@contextmanager
def asking(uri: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into a UserError.

    Raises:
        UserError: the server or the database cannot be reached, or refuses.

    """
    # Ask first, because MLflow's own client retries for minutes.
    require_answer(uri)
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"MLflow at {without_password(uri)}: {one_line(error)}", exit_code=1) from error


def require_answer(uri: str) -> None:
    """Check that a server gives any answer.

    Raises:
        UserError: the server gives no answer.

    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        # urllib takes a password in the address for a part of the host name
        with urllib.request.urlopen(without_password(uri), timeout=ANSWER_SECONDS):  # noqa: S310 - set by the user
            return
    except urllib.error.HTTPError:
        return  # an answer; MLflow reports a failed login itself
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # MLflow has its own settings for certificates
            raise UserError(
                f"MLflow at {without_password(uri)} does not answer ({one_line(reason)}): start it, "
                "or set MLFLOW_TRACKING_URI to where it is",
                exit_code=1,
            ) from error


def without_password(uri: str) -> str:
    """Remove user and password from an address, to show it."""
    address = urlsplit(uri)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
