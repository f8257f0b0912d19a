"""The messages of the Open Inference Protocol's gRPC service, generated from open_inference.proto.

With grpcio-tools 1.71, whose output runs on every protobuf from 5.29 on, in the project's root::

    python -m grpc_tools.protoc -I serve/protocol --python_out=serve/protocol \\
        --pyi_out=serve/protocol serve/protocol/open_inference.proto
"""
