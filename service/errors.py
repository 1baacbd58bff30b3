"""Everything that can go wrong with a request or a start, each with its HTTP status and stable code.

The service answers a `RequestError` as problem+json (RFC 9457); `StartError` ends the start with its message.
"""

from __future__ import annotations

from typing import ClassVar


class TTVideoError(Exception):
    """Root of the tree. The message says what was expected and what came."""


class RequestError(TTVideoError):
    """A request that cannot be answered as asked.

    Attributes:
        status: HTTP status code.
        code: stable machine-readable name; clients may match on it.
        title: one line that is the same for every occurrence.
        type: the code as a URI.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed to answer"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        return f"urn:ttvideo:error:{self.code}"


class EmptyUpload(RequestError):
    status = 400
    code = "empty_upload"
    title = "Nothing was uploaded"


class MalformedUpload(RequestError):
    status = 400
    code = "malformed_upload"
    title = "The upload cannot be parsed"


class InvalidMessage(RequestError):
    status = 400
    code = "invalid_message"
    title = "The message is none that a stream takes"


class InvalidInference(RequestError):
    status = 400
    code = "invalid_inference"
    title = "The inference request does not fit the model"


class Unauthorized(RequestError):
    status = 401
    code = "unauthorized"
    title = "An API key is needed"


class ForeignOrigin(RequestError):
    status = 403
    code = "foreign_origin"
    title = "Pages of this web site may not ask"


class UnknownModel(RequestError):
    status = 404
    code = "unknown_model"
    title = "There is no such model"


class UnknownSequence(RequestError):
    status = 404
    code = "unknown_sequence"
    title = "There is no such sequence"


class NotFound(RequestError):
    status = 404
    code = "not_found"
    title = "There is nothing at this path"


class ModelControlOff(RequestError):
    status = 403
    code = "model_control_off"
    title = "Models may not be loaded or unloaded by request"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"
    title = "The path takes other methods"


class UploadTimeout(RequestError):
    status = 408
    code = "upload_timeout"
    title = "The upload stopped on its way"


class SequenceExpired(RequestError):
    status = 408
    code = "sequence_expired"
    title = "The sequence stood idle for too long"


class SequenceBroken(RequestError):
    status = 409
    code = "sequence_broken"
    title = "The sequence cannot go on in its order"


class UploadTooLarge(RequestError):
    status = 413
    code = "upload_too_large"
    title = "The upload is too large"


class NotAVideo(RequestError):
    status = 415
    code = "not_a_video"
    title = "The upload is not a video in a supported container"


class NoVideoStream(RequestError):
    status = 422
    code = "no_video_stream"
    title = "The file holds no video stream"


class PictureTooLarge(RequestError):
    status = 422
    code = "picture_too_large"
    title = "The video's pictures are too large"


class VideoTooLong(RequestError):
    status = 422
    code = "video_too_long"
    title = "The video is too long"


class TooManyFrames(RequestError):
    status = 422
    code = "too_many_frames"
    title = "The video has too many frames"


class TooManyStreams(RequestError):
    status = 422
    code = "too_many_streams"
    title = "The file holds too many streams"


class TooMuchMemory(RequestError):
    status = 422
    code = "too_much_memory"
    title = "Decoding the video takes more memory than a decoder may have"


class UndecodableVideo(RequestError):
    status = 422
    code = "undecodable_video"
    title = "The video cannot be decoded"


class DecoderCrashed(RequestError):
    status = 422
    code = "decoder_crashed"
    title = "The decoder crashed on this video"


class NotForClips(RequestError):
    status = 422
    code = "not_for_clips"
    title = "The model does not classify whole clips"


class NotForPieces(RequestError):
    status = 422
    code = "not_for_pieces"
    title = "The model does not take a clip in pieces"


class ModelRefused(RequestError):
    status = 422
    code = "model_refused"
    title = "The model file cannot be served"


class InvalidParameter(RequestError):
    status = 422
    code = "invalid_parameter"
    title = "A parameter is out of its range"


class RateLimited(RequestError):
    status = 429
    code = "rate_limited"
    title = "Too many requests came from one caller"


class TooManyFiles(RequestError):
    status = 422
    code = "too_many_files"
    title = "The request holds too many files"


class TooManyWindows(RequestError):
    status = 422
    code = "too_many_windows"
    title = "The video's timeline has too many windows"


class Busy(RequestError):
    status = 503
    code = "busy"
    title = "The service is at its limit"


class NotReady(RequestError):
    status = 503
    code = "not_ready"
    title = "The service is starting or shutting down"


class OutOfMemory(RequestError):
    status = 503
    code = "out_of_memory"
    title = "There is not the memory to run the model"


class NoRoom(RequestError):
    status = 507
    code = "no_room"
    title = "The service has no room for the upload"


class DeadlineExceeded(RequestError):
    status = 504
    code = "deadline_exceeded"
    title = "The answer was not ready in time"


_KINDS: list[type[RequestError]] = [RequestError, *RequestError.__subclasses__()]
BY_CODE = {kind.code: kind for kind in _KINDS}


class StartError(TTVideoError):
    """The service cannot start as asked."""


class InvalidModel(StartError):
    """A model file that does not keep the contract of `service.manifest`."""


class ProviderUnavailable(StartError):
    """An execution provider was asked for by name and cannot be had."""
