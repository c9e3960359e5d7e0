"""Command-line options about keys and TLS: the server's, and those of commands that call one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import grpc

from serving.access.access import AccessConfig
from serving.access.keys import MAX_KEY_LENGTH
from serving.access.tls import TlsConfig
from serving.commands.parsing import CommandError
from serving.commands.vllm_options import Listed


def add_access_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may call (docs/operations.md)")
    group.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="calls need a key of this file, made by `jaxinfer keys` (default: none needed)",
    )
    group.add_argument(
        "--api-key",
        action=Listed,
        nargs="+",
        type=_key,
        metavar="KEY",
        default=[],
        help="or one of these, which may do everything; others on this machine can see them (default: none)",
    )
    group.add_argument(
        "--tls-cert",
        "--ssl-certfile",
        type=Path,
        metavar="FILE",
        help="certificate chain of both ports, PEM (default: no TLS)",
    )
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="clients need a certificate that this signed")
    for which in ("input", "output"):
        group.add_argument(
            f"--{which}-filter", metavar="MODULE:FUNCTION", help=f"judges every {which}: allow, redact or refuse"
        )


def access_config(arguments: argparse.Namespace) -> AccessConfig:
    return AccessConfig(arguments.api_keys, _tls(arguments), tuple(arguments.api_key))


def _key(text: str) -> str:
    if not (1 <= len(text) <= MAX_KEY_LENGTH and text.isascii() and text.isprintable() and " " not in text):
        raise argparse.ArgumentTypeError(f"it must be 1 to {MAX_KEY_LENGTH} ASCII characters without spaces")
    return text


def _tls(arguments: argparse.Namespace) -> TlsConfig | None:
    if arguments.tls_cert is None:
        return None
    return TlsConfig(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca)


def check_access_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if arguments.tls_client_ca is not None and arguments.tls_cert is None:
        parser.error("--tls-client-ca needs --tls-cert and --tls-key")


_CLIENT_OPTIONS = ("api_key_file", "tls_ca", "tls_client_cert", "tls_client_key")


# -- clients ----------------------------------------------------------------------------------------------------------


def add_client_options(parser: argparse.ArgumentParser, title: str = "with --server") -> None:
    group = parser.add_argument_group(title)
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds the API key, where the server wants one"
    )
    group.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="use TLS; PEM of who signed the server's certificate (default: no TLS)",
    )
    group.add_argument("--tls-client-cert", type=Path, metavar="FILE", help="the client's own certificate chain, PEM")
    group.add_argument("--tls-client-key", type=Path, metavar="FILE", help="its private key, PEM")


def check_client_options(arguments: argparse.Namespace) -> None:
    """Raises CommandError for options that need another, or that need --server."""
    given = [name for name in _CLIENT_OPTIONS if getattr(arguments, name) is not None]
    if given and arguments.server is None:
        raise CommandError(f"--{given[0].replace('_', '-')} goes with --server")
    own = [name for name in given if name.startswith("tls_client")]
    if own and arguments.tls_ca is None:
        raise CommandError("--tls-client-cert and --tls-client-key need --tls-ca")
    if len(own) == 1:
        raise CommandError("--tls-client-cert and --tls-client-key go together")


def client_metadata(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """What a call carries. Raises CommandError."""
    if arguments.api_key_file is None:
        return ()
    return (("authorization", f"Bearer {_read(arguments.api_key_file).decode('latin-1').strip()}"),)


def client_channel(arguments: argparse.Namespace, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    """To `arguments.server`. Raises CommandError."""
    if arguments.tls_ca is None:
        return grpc.aio.insecure_channel(arguments.server, options=options)
    authority = _read(arguments.tls_ca)
    if b"-----BEGIN CERTIFICATE-----" not in authority:
        raise CommandError(f"--tls-ca is {str(arguments.tls_ca)!r}; it must be a file with a certificate in PEM")
    own = [None if path is None else _read(path) for path in (arguments.tls_client_key, arguments.tls_client_cert)]
    credentials = grpc.ssl_channel_credentials(authority, own[0], own[1])
    return grpc.aio.secure_channel(arguments.server, credentials, options=options)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
