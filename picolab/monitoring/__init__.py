"""What a run says about itself, and what can be read from it. No torch here."""

from picolab.monitoring.events import Event, emit
from picolab.monitoring.ledger import Entry, Ledger, Totals
from picolab.monitoring.table import Table

__all__ = ["Entry", "Event", "Ledger", "Table", "Totals", "emit"]
