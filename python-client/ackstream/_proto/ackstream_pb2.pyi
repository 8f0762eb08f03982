import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Feature(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_UNSPECIFIED: _ClassVar[Feature]
    FEATURE_SESSIONS: _ClassVar[Feature]
    FEATURE_RELEASE: _ClassVar[Feature]
FEATURE_UNSPECIFIED: Feature
FEATURE_SESSIONS: Feature
FEATURE_RELEASE: Feature

class StreamMessage(_message.Message):
    __slots__ = ("open", "opened", "data", "ack", "nack", "extend", "data_batch", "ack_batch", "extend_batch")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    DATA_BATCH_FIELD_NUMBER: _ClassVar[int]
    ACK_BATCH_FIELD_NUMBER: _ClassVar[int]
    EXTEND_BATCH_FIELD_NUMBER: _ClassVar[int]
    open: Open
    opened: Opened
    data: DataMessage
    ack: AckMessage
    nack: Nack
    extend: Extend
    data_batch: DataBatch
    ack_batch: AckBatch
    extend_batch: ExtendBatch
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., data: _Optional[_Union[DataMessage, _Mapping]] = ..., ack: _Optional[_Union[AckMessage, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., extend: _Optional[_Union[Extend, _Mapping]] = ..., data_batch: _Optional[_Union[DataBatch, _Mapping]] = ..., ack_batch: _Optional[_Union[AckBatch, _Mapping]] = ..., extend_batch: _Optional[_Union[ExtendBatch, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("topic", "subscription", "client_id", "max_outstanding_messages", "max_outstanding_bytes", "max_batch_messages", "publish_only", "auto_ack", "max_concurrent_handlers", "resume")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_ONLY_FIELD_NUMBER: _ClassVar[int]
    AUTO_ACK_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_HANDLERS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    topic: str
    subscription: str
    client_id: str
    max_outstanding_messages: int
    max_outstanding_bytes: int
    max_batch_messages: int
    publish_only: bool
    auto_ack: bool
    max_concurrent_handlers: int
    resume: Resume
    def __init__(self, topic: _Optional[str] = ..., subscription: _Optional[str] = ..., client_id: _Optional[str] = ..., max_outstanding_messages: _Optional[int] = ..., max_outstanding_bytes: _Optional[int] = ..., max_batch_messages: _Optional[int] = ..., publish_only: bool = ..., auto_ack: bool = ..., max_concurrent_handlers: _Optional[int] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("session", "held")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    held: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[bytes] = ..., held: _Optional[_Iterable[int]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("epoch", "topic", "subscription", "ack_deadline", "max_retries", "max_message_bytes", "server_version", "features", "session")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ACK_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    topic: str
    subscription: str
    ack_deadline: _duration_pb2.Duration
    max_retries: int
    max_message_bytes: int
    server_version: str
    features: _containers.RepeatedScalarFieldContainer[Feature]
    session: bytes
    def __init__(self, epoch: _Optional[int] = ..., topic: _Optional[str] = ..., subscription: _Optional[str] = ..., ack_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_retries: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., server_version: _Optional[str] = ..., features: _Optional[_Iterable[_Union[Feature, str]]] = ..., session: _Optional[bytes] = ...) -> None: ...

class DataMessage(_message.Message):
    __slots__ = ("id", "timestamp", "payload", "requires_ack", "delivery_attempt", "attributes", "trace_context", "failures", "interruptions")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_ACK_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTIONS_FIELD_NUMBER: _ClassVar[int]
    id: int
    timestamp: _timestamp_pb2.Timestamp
    payload: bytes
    requires_ack: bool
    delivery_attempt: int
    attributes: _containers.ScalarMap[str, str]
    trace_context: str
    failures: int
    interruptions: int
    def __init__(self, id: _Optional[int] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., payload: _Optional[bytes] = ..., requires_ack: bool = ..., delivery_attempt: _Optional[int] = ..., attributes: _Optional[_Mapping[str, str]] = ..., trace_context: _Optional[str] = ..., failures: _Optional[int] = ..., interruptions: _Optional[int] = ...) -> None: ...

class AckMessage(_message.Message):
    __slots__ = ("ack_id", "timestamp", "delivery_attempt", "message_id")
    ACK_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ack_id: int
    timestamp: _timestamp_pb2.Timestamp
    delivery_attempt: int
    message_id: int
    def __init__(self, ack_id: _Optional[int] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delivery_attempt: _Optional[int] = ..., message_id: _Optional[int] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("ack_id", "delivery_attempt", "delay", "drop", "code", "reason", "release")
    ACK_ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ack_id: int
    delivery_attempt: int
    delay: _duration_pb2.Duration
    drop: bool
    code: int
    reason: str
    release: bool
    def __init__(self, ack_id: _Optional[int] = ..., delivery_attempt: _Optional[int] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., drop: bool = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., release: bool = ...) -> None: ...

class Extend(_message.Message):
    __slots__ = ("ack_id", "delivery_attempt", "ack_deadline")
    ACK_ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACK_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    ack_id: int
    delivery_attempt: int
    ack_deadline: _duration_pb2.Duration
    def __init__(self, ack_id: _Optional[int] = ..., delivery_attempt: _Optional[int] = ..., ack_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DataBatch(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[DataMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[DataMessage, _Mapping]]] = ...) -> None: ...

class AckBatch(_message.Message):
    __slots__ = ("ack_ids", "message_ids")
    ACK_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    ack_ids: _containers.RepeatedScalarFieldContainer[int]
    message_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ack_ids: _Optional[_Iterable[int]] = ..., message_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ExtendBatch(_message.Message):
    __slots__ = ("ack_ids", "ack_deadline")
    ACK_IDS_FIELD_NUMBER: _ClassVar[int]
    ACK_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    ack_ids: _containers.RepeatedScalarFieldContainer[int]
    ack_deadline: _duration_pb2.Duration
    def __init__(self, ack_ids: _Optional[_Iterable[int]] = ..., ack_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
