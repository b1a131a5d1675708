"""What all remote providers share: the seam (adapter), what is asked for (wish), the HTTP client (transport), the keys
(credentials), the pictures of an answer (pictures), and what drives them (provider)."""
