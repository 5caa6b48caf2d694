"""Tables, pictures and exports of finished runs: python -m utils.report."""
