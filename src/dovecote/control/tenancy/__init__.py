"""Who may: tenants, their API keys and their end users."""

from dovecote.control.tenancy.keys import NewKey, Principal
from dovecote.control.tenancy.tenancy import Tenancy

__all__ = ["NewKey", "Principal", "Tenancy"]
