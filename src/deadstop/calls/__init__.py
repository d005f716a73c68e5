"""An in-flight call and how it is interrupted."""
