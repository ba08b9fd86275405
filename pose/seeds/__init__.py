"""One seed as a unit of work: plain values in, plain values out, recorded by whoever listens."""
