"""What verbs share: command line, the ledger of jobs, reading, registration, the console."""
