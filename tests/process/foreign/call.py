"""Calls ListServices with grpcio: call.py ADDRESS CA CERT KEY NAME, "-" for none.

Prints the answer in hexadecimal, or ends with 3 and prints why there is none.
"""
import sys

import grpc

address, ca, cert, key, name = sys.argv[1:]


def read(path):
    return None if path == "-" else open(path, "rb").read()


credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
options = [] if name == "-" else [("grpc.ssl_target_name_override", name)]
with grpc.secure_channel(address, credentials, options) as channel:
    try:
        # Bytes in, bytes out; an empty message asks for everything.
        print(channel.unary_unary("/quorate.v1.Registry/ListServices")(b"", timeout=10).hex())
    except grpc.RpcError as error:
        print(error.code().name, error.details())
        sys.exit(3)
