"""From torch modules to engine files, each behind its parity gate."""
