"""Energy: counters, attribution, receipts, the ledger."""
