//! Answers as text, and the server on loopback.
