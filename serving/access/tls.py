"""TLS of both servers from the same files; renewed certificates are taken up while the server runs."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.access.watch import Watched

_LOG = logging.getLogger("serving.access")


class TlsError(Exception):
    """TLS cannot be had: one sentence."""


@dataclass(frozen=True)
class TlsConfig:
    """PEM files. client_ca: clients must show a certificate that it signed (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *(() if self.client_ca is None else (self.client_ca,)))


class Tls:
    """Raises TlsError. `refresh` takes up changed files; broken ones leave the old certificate in use."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._files = Watched(*config.files)
        self._pem = self._read()
        self.context = _context(config)

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        config = self._config
        try:
            ca = None if config.client_ca is None else config.client_ca.read_bytes()
            return config.key.read_bytes(), config.certificate.read_bytes(), ca
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be read: {error.strerror or error}") from error

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """They ask for the newest certificate at every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(),
            self._grpc_configuration,
            require_client_authentication=self._config.client_ca is not None,
        )

    def _grpc_configuration(self) -> Any:
        key, certificate, ca = self._pem
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

    def refresh(self) -> None:
        if not self._files.changed():
            return
        try:
            _context(self._config)  # a key that is not the certificate's must not reach the context in use
            pem = self._read()
            _load(self.context, self._config)
        except TlsError as error:
            _LOG.error("the new certificate cannot be used, the old one stays: %s", error)
            return
        self._pem = pem
        _LOG.info("the certificate was read again")


def _context(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, config)
    return context


def _load(context: ssl.SSLContext, config: TlsConfig) -> None:
    try:
        # An encrypted key must not make a server wait for somebody at its terminal.
        context.load_cert_chain(config.certificate, config.key, password=_no_password)
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = " and ".join(str(path) for path in config.files)
        raise TlsError(f"{names} are no certificate and its key: {error}") from error


def _no_password() -> str:
    raise ValueError("the private key is encrypted")


def is_loopback(host: str) -> bool:
    """Whether every address of the host is this machine's own."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in found)
