"""The wire contract as Python code, made by generate_protos.py. Private: import nothing from here."""
