"""Where private keys live: in a file, under a passphrase or not, or behind somebody who signs (PKCS#11, a KMS)."""
