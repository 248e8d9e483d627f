"""The error tree. Nothing else raises to the user; no logic lives here.

    KboError
    ├── SettingsError      a setting is unknown or malformed
    ├── ExtractError       a ZIP, a member or a row of it is not what KBO publishes
    ├── OrderError         an extract does not follow the published one
    ├── NotFoundError      what is asked for is not in the register
    ├── NotReadyError      what this step needs is not there yet
    ├── CheckFailedError   what an extract makes of the register is not fit for readers
    ├── RegisterError      the register, a staging file or the ledger contradicts itself
    │   └── DamagedError         a file of ours is not what was written
    ├── ImportFailedError  a run of an import failed
    ├── ExportError        where an export is to go, something else lies
    ├── PortalError        the KBO portal does not answer as it must
    │   ├── LoginRefusedError    it refuses the account
    │   └── PortalRefusedError   it refuses one address, or points to another server
    └── StorageError       PostgreSQL or the disk does not answer as it must

Every message is one line that names the thing, the place and the next step. Errors of the system
and of libraries become such a line in `text.py`.
"""


class KboError(Exception):
    """Root of all errors that this package raises on purpose.

    Attributes:
        transient: the same call may succeed a moment later, with nothing changed by anybody.
    """

    transient = False


class SettingsError(KboError):
    """A setting is unknown or malformed."""


class ExtractError(KboError):
    """A ZIP, a member or a row of it is not what KBO publishes; trying again cannot heal it."""


class OrderError(KboError):
    """An extract does not follow what is published."""


class NotFoundError(KboError):
    """What is asked for is not in the published register."""


class NotReadyError(KboError):
    """What this step needs is not there yet."""


class CheckFailedError(KboError):
    """What an extract makes of the register is not fit for readers; they keep what they have."""


class RegisterError(KboError):
    """The register, a staging file or the ledger contradicts itself."""


class DamagedError(RegisterError):
    """A register or staging file is not what was written: bits have changed, or a part is gone."""


class ImportFailedError(KboError):
    """A run of an import failed; what it committed stays."""


class ExportError(KboError):
    """Where an export is to go, something else lies; it stays as it is."""


class PortalError(KboError):
    """The KBO portal does not answer as it must; it may later.

    Attributes:
        wait: seconds that it asks to wait before it is asked again; None when it names none.
    """

    transient = True

    def __init__(self, message: str, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class LoginRefusedError(PortalError):
    """The portal refuses the account; asking again may lock it."""

    transient = False


class PortalRefusedError(PortalError):
    """The portal refuses one address, or its answer points where no credentials may go."""

    transient = False


class StorageError(KboError):
    """PostgreSQL, a lock or the disk does not answer as it must."""

    transient = True


NOTHING_PUBLISHED = "nothing is published yet; kbo import a Full"
