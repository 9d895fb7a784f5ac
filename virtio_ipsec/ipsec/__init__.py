"""RFC 4301/4302/4303 on packets: SA, replay window, lifetimes, ESP, AH, tunnel header. The oracle."""
