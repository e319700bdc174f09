import http.client
import os
import urllib.request
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import UserError

OUTPUTS = Path("outputs")


class Settings(BaseSettings):
    """Addresses and folders, from the environment. Default folders are in `outputs/` of the workspace."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    mlflow_tracking_uri: str | None = Field(None, description="tracking server; default: a SQLite file")
    prefect_api_url: str | None = Field(
        None, description="Prefect server; default: one that lives as long as the command"
    )
    prefect_home: Path | None = None
    bentoml_home: Path | None = None
    convoy_token: SecretStr | None = Field(None, description="token that is shown to endpoints")

    def tracking_uri(self, workspace: Path) -> str:
        """Address of MLflow: a server, or a SQLite file."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        database = (workspace / OUTPUTS / "mlflow" / "mlflow.db").resolve()
        database.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{database}"

    def artifacts(self, workspace: Path) -> Path | None:
        """Folder for the files of runs, or None if a server keeps them."""
        # Do not test whether the variable is set, because MLflow writes its own address into the environment.
        is_file = self.tracking_uri(workspace).startswith("sqlite:")
        return workspace / OUTPUTS / "mlflow" / "artifacts" if is_file else None

    def bento_store(self, workspace: Path) -> Path:
        """Folder of the Bentos."""
        return (self.bentoml_home or workspace / OUTPUTS / "bentoml").resolve()


class Stack(BaseSettings):
    """Addresses and login of the stack of docker-compose.yml on this machine, from the `.env` of the workspace."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    convoy_bind: str = "127.0.0.1"
    gateway_port: int = 8080
    mlflow_port: int = 5000
    mlflow_tracking_username: str | None = Field(None, description="user of MLflow; default: its administrator")
    mlflow_tracking_password: SecretStr | None = None
    convoy_secrets: Path = Path(".secrets")
    convoy_allow_anonymous: bool = False

    def address(self, port: int) -> str:
        """Address of a port of the stack, as seen from this machine."""
        host = "127.0.0.1" if self.convoy_bind in ("0.0.0.0", "::", "") else self.convoy_bind  # noqa: S104
        return f"http://{host}:{port}"

    def mlflow_login(self) -> tuple[str, str] | None:
        """User and password of the stack's MLflow, or None before `make env`.

        Raises:
            UserError: this user may not read the password's file.

        """
        if self.mlflow_tracking_username and self.mlflow_tracking_password:
            return self.mlflow_tracking_username, self.mlflow_tracking_password.get_secret_value()
        path = self.convoy_secrets / "mlflow_admin_password"
        try:
            return "admin", path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; whoever said `make env` can, or set MLFLOW_TRACKING_URI"
            ) from None


def use_stack(workspace: Path) -> None:
    """Use the stack's MLflow, if it answers and no other address is set."""
    if Settings().mlflow_tracking_uri or not (workspace / ".env").is_file():
        return
    stack = Stack()
    uri = stack.address(stack.mlflow_port)
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):  # noqa: S310 - always http
            pass
    except (OSError, http.client.HTTPException):
        return
    os.environ["MLFLOW_TRACKING_URI"] = uri
    if login := stack.mlflow_login():
        for name, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), login, strict=True):
            os.environ.setdefault(name, value)


def prepare_environment(workspace: Path) -> Settings:
    """Set folders of the libraries, and switch telemetry off. Must run before the libraries are imported."""
    settings = Settings()
    defaults = {
        "PREFECT_HOME": str((workspace / OUTPUTS / "prefect").resolve()),
        "BENTOML_HOME": str(settings.bento_store(workspace)),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # With "1", BentoML and MLflow would go on tracking.
        "DO_NOT_TRACK": "true",
        "BENTOML_DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Stdout is for the result of the command only.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # Enough for a restart of the server. MLflow's default of 7 waits four minutes for a server that is gone.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        # Prefect records our log lines too. The lines of Prefect's engine stay out of the terminal.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "convoy",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return settings
