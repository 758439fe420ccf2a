#!/usr/bin/env python3
"""What a client in another language sees: every rpc, driven by code made from the protos alone.

    python client.py --address 127.0.0.1:7411 --proto proto

The server may run any model and either engine, so the tests use only what holds for all of
them: an identical text is an exact hit, and at a similarity of -1 every entry is near enough.
Each test has a namespace of its own and leaves the rest of the server alone. At the end the
methods that succeeded are compared with those that the server's reflection lists; one that
no test has called fails the run.
"""

import argparse
import importlib
import math
import pathlib
import struct
import sys
import tempfile
import time
import types
import unittest
import uuid

import grpc
import grpc_tools
from google.protobuf import descriptor_pool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from grpc_tools import protoc

PACKAGE = "refrain.v1"
# Deadline of a call: far beyond what a loaded machine needs, and never for ever.
CALL_SECONDS_MAX = 30
# How long a condition may take to come true.
CONDITION_SECONDS_MAX = 15
ENTRY_ID_UNKNOWN = "0" * 40
HOUR_SECONDS = 3600

# Filled by main(): the messages and enum values of all protos, and the way to the server.
pb = types.SimpleNamespace()
server = types.SimpleNamespace()


def generate(protos, folder):
    """Make the client's code in a folder and gather it in `pb`; return the declared methods."""
    files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    # The wheel of grpcio-tools carries the well-known types.
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    options = [f"-I{protos}", f"-I{well_known}", f"--python_out={folder}"]
    if protoc.main(["protoc", *options, f"--grpc_python_out={folder}", *files]) != 0:
        sys.exit("error: the protos do not compile; protoc's message is above")
    sys.path.insert(0, str(folder))
    declared = set()
    for file in files:
        name = file.removesuffix(".proto").replace("/", ".")
        for module in (f"{name}_pb2", f"{name}_pb2_grpc"):
            vars(pb).update(vars(importlib.import_module(module)))
        descriptor = importlib.import_module(f"{name}_pb2").DESCRIPTOR
        for service in descriptor.services_by_name.values():
            declared |= paths(service)
    return declared


def paths(service):
    """The methods of a service as they stand on the wire."""
    return {f"/{service.full_name}/{method.name}" for method in service.methods}


class Recorder(grpc.UnaryUnaryClientInterceptor):
    """Remembers which methods have succeeded, and gives a deadline to calls without one."""

    class Details(grpc.ClientCallDetails):
        """Call details with fields that can be set."""

        def __init__(self, given):
            self.method, self.metadata, self.credentials = (
                given.method, given.metadata, given.credentials,
            )
            self.wait_for_ready, self.compression = given.wait_for_ready, given.compression
            self.timeout = CALL_SECONDS_MAX if given.timeout is None else given.timeout

    def __init__(self):
        self.succeeded = set()

    def intercept_unary_unary(self, continuation, client_call_details, request):
        call = continuation(self.Details(client_call_details), request)
        if call.code() is grpc.StatusCode.OK:
            self.succeeded.add(client_call_details.method)
        return call


def reflected_methods(channel):
    """The methods of this package as a client without protos would find them."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    found = set()
    for name in database.get_services():
        if name.startswith(f"{PACKAGE}."):
            found |= paths(pool.FindServiceByName(name))
    return found


def prompt(text):
    return pb.Prompt(text=text)


def seconds(count):
    return Duration(seconds=count)


def milliseconds(message):
    """A Duration or Timestamp as a number that can be compared."""
    return message.seconds * 1000 + message.nanos // 1_000_000


def floats(packed):
    return struct.unpack(f"<{len(packed) // 4}f", packed)


def cosine(one, other):
    """The similarity of two unit vectors."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def detail(status, kind):
    """The first detail of a kind in a rich status, or None."""
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None


class Case(unittest.TestCase):
    """A test with a namespace of its own and a stub for each service."""

    def setUp(self):
        self.namespace = f"python-{uuid.uuid4().hex}"
        self.cache = pb.CacheServiceStub(server.channel)
        self.embedding = pb.EmbeddingServiceStub(server.channel)
        self.admin = pb.AdminServiceStub(server.channel)

    # Requests with what every test says the same way. Fields given by name overrule.

    def ask(self, text, **fields):
        given = {"namespace": self.namespace, "prompt": prompt(text)}
        return pb.LookupRequest(**given | fields)

    def answer(self, text, response=b"the answer", **fields):
        given = {"namespace": self.namespace, "prompt": prompt(text), "response": response}
        return pb.StoreRequest(**given | fields)

    def lookup(self, text, **fields):
        found = self.cache.Lookup(self.ask(text, **fields))
        self.assertEqual(found.receipt.degraded, "", "the server was too slow for this test")
        return found

    def store(self, text, response=b"the answer", **fields):
        return self.cache.Store(self.answer(text, response, **fields))

    def embed(self, *texts, **fields):
        request = {"namespace": self.namespace, "texts": texts} | fields
        return self.embedding.Embed(pb.EmbedRequest(**request))

    def get(self, entry_id):
        request = pb.GetEntryRequest(namespace=self.namespace, entry_id=entry_id)
        return self.cache.GetEntry(request).entry

    def delete(self, entry_id, **fields):
        request = {"namespace": self.namespace, "entry_id": entry_id} | fields
        return self.cache.DeleteEntry(pb.DeleteEntryRequest(**request))

    def list(self, **fields):
        request = {"namespace": self.namespace} | fields
        return self.cache.ListEntries(pb.ListEntriesRequest(**request))

    def invalidate(self, dry_run=False, request_id="", **parts):
        request = pb.InvalidateEntriesRequest(
            namespace=self.namespace,
            selector=pb.EntrySelector(**parts),
            dry_run=dry_run,
            request_id=request_id,
        )
        return self.cache.InvalidateEntries(request).count

    # Claims.

    def assert_hit(self, found, tier):
        self.assertEqual(found.receipt.outcome, pb.OUTCOME_HIT, found.receipt)
        self.assertEqual(found.receipt.tier, tier, found.receipt)
        self.assertEqual(found.receipt.miss_reason, pb.MISS_REASON_UNSPECIFIED)
        self.assertEqual(found.receipt.entry_id, found.entry.id)

    def assert_miss(self, found, reason):
        self.assertEqual(found.receipt.outcome, pb.OUTCOME_MISS, found.receipt)
        self.assertEqual(found.receipt.miss_reason, reason, found.receipt)
        self.assertEqual(found.receipt.tier, pb.TIER_UNSPECIFIED)
        self.assertFalse(found.HasField("entry"))

    def assert_failed(self, code, reason, call, *arguments, **fields):
        """The call fails with a code and an ErrorInfo; returns the rich status."""
        with self.assertRaises(grpc.RpcError) as raised:
            call(*arguments, **fields)
        error = raised.exception
        self.assertIs(error.code(), code, error.details())
        status = rpc_status.from_call(error)
        self.assertIsNotNone(status, "the error carries no details")
        info = detail(status, error_details_pb2.ErrorInfo)
        self.assertEqual((info.domain, info.reason), ("refrain", reason))
        return status

    def assert_refused(self, field, call, *arguments, **fields):
        """The call is refused, and the field to blame is named."""
        code = grpc.StatusCode.INVALID_ARGUMENT
        status = self.assert_failed(code, "INVALID_FIELD", call, *arguments, **fields)
        violations = detail(status, error_details_pb2.BadRequest).field_violations
        self.assertEqual([violation.field for violation in violations], [field])
        self.assertNotEqual(violations[0].description, "")

    def eventually(self, what, condition):
        """Asks again until the condition holds; returns what it returned."""
        end = time.monotonic() + CONDITION_SECONDS_MAX
        while not (result := condition()):
            self.assertLess(time.monotonic(), end, f"never came true: {what}")
            time.sleep(0.005)
        return result


class Embed(Case):
    def test_get_model_describes_the_space(self):
        model = self.embedding.GetModel(pb.GetModelRequest()).model
        self.assertNotEqual(model.name, "")
        self.assertGreater(model.dimension, 0)
        self.assertGreater(model.tokens_max, 0)
        self.assertRegex(model.space, "^[0-9a-f]{16}$")
        embedded = self.embed("a text")
        self.assertEqual((embedded.space, embedded.dimension), (model.space, model.dimension))

    def check_vectors(self, embedded, count):
        self.assertEqual(len(embedded.embeddings), count)
        for one in embedded.embeddings:
            vector = floats(one.vector)
            self.assertEqual(len(vector), embedded.dimension)
            self.assertAlmostEqual(math.hypot(*vector), 1, places=4)
            self.assertGreater(one.tokens, 0)
            self.assertFalse(one.truncated)

    def test_embed_a_query(self):
        self.check_vectors(self.embed("how do I pay?", purpose=pb.EMBED_PURPOSE_QUERY), 1)

    def test_embed_a_passage(self):
        embedded = self.embed("You pay by card.", purpose=pb.EMBED_PURPOSE_PASSAGE)
        self.check_vectors(embedded, 1)

    def test_embed_a_batch_in_the_order_of_its_texts(self):
        texts = [f"text number {i} of a batch" for i in range(20)] + ["Grüße aus 東京 🌸"]
        batch = self.embed(*texts, lane=pb.EMBED_LANE_BULK)
        self.check_vectors(batch, len(texts))
        for at in (0, 7, 20):
            alone = self.embed(texts[at], namespace=f"{self.namespace}-alone")
            pair = floats(batch.embeddings[at].vector), floats(alone.embeddings[0].vector)
            # A batch is padded, which moves the last bits.
            self.assertGreater(cosine(*pair), 0.999)

    def test_embed_remembers_within_a_namespace_only(self):
        first = self.embed("remember me").embeddings[0]
        again = self.embed("remember me", "and me").embeddings
        self.assertEqual([first.memoized, *(one.memoized for one in again)], [False, True, False])
        self.assertEqual((again[0].vector, again[0].tokens), (first.vector, first.tokens))
        stranger = self.embed("remember me", namespace=f"{self.namespace}-other")
        self.assertFalse(stranger.embeddings[0].memoized)

    def test_embed_says_that_a_text_was_cut(self):
        tokens_max = self.embedding.GetModel(pb.GetModelRequest()).model.tokens_max
        one = self.embed("word " * (2 * tokens_max)).embeddings[0]
        self.assertTrue(one.truncated)
        self.assertAlmostEqual(math.hypot(*floats(one.vector)), 1, places=4)

    def test_embed_counts_tokens_before_any_cut(self):
        tokens_max = self.embedding.GetModel(pb.GetModelRequest()).model.tokens_max
        one = self.embed("word " * (2 * tokens_max)).embeddings[0]
        self.assertGreater(one.tokens, tokens_max)

    def test_embed_refuses_no_text_and_empty_texts(self):
        self.assert_refused("texts", self.embed)
        self.assert_refused("texts[1]", self.embed, "good", "")
        self.assert_refused("texts[0]", self.embed, " \n")

    def test_embed_refuses_unknown_purposes_and_lanes(self):
        self.assert_refused("purpose", self.embed, "a", purpose=77)
        self.assert_refused("lane", self.embed, "a", lane=77)

    def test_embed_refuses_more_texts_than_the_limit(self):
        texts_max = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits.embed_texts_max
        self.assert_refused("texts", self.embed, *["a"] * (texts_max + 1))


class Lookup(Case):
    def test_lookup_misses_stores_and_hits_exactly(self):
        self.assert_miss(self.lookup("what is a refrain?"), pb.MISS_REASON_EMPTY)
        stored = self.store("what is a refrain?", "a line that returns — das ist’s".encode())
        self.assertTrue(stored.created)
        self.assertFalse(stored.exact_only)
        found = self.lookup("what is a refrain?")
        self.assert_hit(found, pb.TIER_EXACT)
        self.assertEqual(found.entry.response, "a line that returns — das ist’s".encode())
        self.assertEqual(found.entry.id, stored.entry_id)
        self.assertEqual(found.receipt.similarity, 1)
        self.assertTrue(found.receipt.HasField("age"))
        self.assertGreater(found.receipt.timings.total_us, 0)

    def test_lookup_compares_prompts_normalized(self):
        self.store("Où est le café?\nIci.")
        # The accents as combining characters, line ends of another system, space around.
        found = self.lookup("  Ou\u0300 est le cafe\u0301?\r\nIci.\r\n")
        self.assert_hit(found, pb.TIER_EXACT)
        self.assertEqual(found.entry.prompt.text, "Où est le café?\nIci.")
        self.assert_miss(
            self.lookup("où est le café?\nIci.", tiers=[pb.TIER_EXACT]), pb.MISS_REASON_BYPASSED
        )

    def test_lookup_hits_semantically(self):
        stored = self.store("how tall is the tower in Paris", b"330 m")
        found = self.lookup("where is the harbor in Lisbon", min_similarity=-1)
        self.assert_hit(found, pb.TIER_SEMANTIC)
        self.assertEqual((found.entry.response, found.entry.id), (b"330 m", stored.entry_id))
        self.assertEqual(found.receipt.min_similarity, -1)
        embedded = self.embed("how tall is the tower in Paris", "where is the harbor in Lisbon")
        self.assertEqual(found.receipt.space, embedded.space)
        expected = cosine(*(floats(one.vector) for one in embedded.embeddings))
        # An engine may move equal vectors apart by a hundredth.
        self.assertAlmostEqual(found.receipt.similarity, expected, delta=0.02)

    def test_lookup_names_the_runner_up(self):
        near = self.store("how tall is the tower in Paris").entry_id
        far = self.store("bake bread without yeast").entry_id
        found = self.lookup("how tall is the old tower in Paris", min_similarity=-1)
        self.assert_hit(found, pb.TIER_SEMANTIC)
        self.assertEqual((found.entry.id, found.receipt.runner_up.entry_id), (near, far))
        self.assertGreater(found.receipt.similarity, found.receipt.runner_up.similarity)

    def test_lookup_takes_zero_similarity_as_a_value_and_unset_as_the_default(self):
        stored = self.store("how tall is the tower in Paris")
        zero = self.lookup("where is the harbor in Lisbon", min_similarity=0)
        self.assertTrue(zero.receipt.HasField("min_similarity"))
        self.assertEqual(zero.receipt.min_similarity, 0)
        unset = self.lookup("where is the harbor in Lisbon")
        self.assertGreater(unset.receipt.min_similarity, 0)
        similarity = zero.receipt.similarity
        self.assertTrue(0 < similarity < unset.receipt.min_similarity, similarity)
        self.assert_hit(zero, pb.TIER_SEMANTIC)
        self.assert_miss(unset, pb.MISS_REASON_BELOW_FLOOR)
        # A miss names the nearest entry that was considered.
        self.assertEqual(unset.receipt.entry_id, stored.entry_id)
        self.assertAlmostEqual(unset.receipt.similarity, similarity, places=4)

    def test_lookup_agrees_on_attributes_as_a_set(self):
        pairs = {"model": "m|1", "locale": "de-CH {x}"}
        self.store("q", attributes=pairs)
        found = self.lookup("q", attributes=pairs)
        self.assert_hit(found, pb.TIER_EXACT)
        self.assertEqual(dict(found.entry.attributes), pairs)
        self.assert_hit(
            self.lookup("another", attributes=pairs, min_similarity=-1), pb.TIER_SEMANTIC
        )
        others = [{}, {"model": "m|1"}, pairs | {"more": ""}, pairs | {"model": "m"}]
        for other in others:
            with self.subTest(other):
                found = self.lookup("q", attributes=other, min_similarity=-1)
                self.assert_miss(found, pb.MISS_REASON_FILTERED)

    def test_lookup_honors_max_age(self):
        self.store("q")
        self.assert_hit(self.lookup("q", max_age=seconds(HOUR_SECONDS)), pb.TIER_EXACT)

        def too_old():
            found = self.lookup("q", max_age=Duration(nanos=1_000_000))
            return found if found.receipt.outcome == pb.OUTCOME_MISS else None

        found = self.eventually("the entry is older than a millisecond", too_old)
        self.assert_miss(found, pb.MISS_REASON_EXPIRED)
        self.assert_hit(self.lookup("q"), pb.TIER_EXACT)

    def test_lookup_asks_only_the_wanted_tiers(self):
        self.store("one two three")
        exact = self.lookup("one two", tiers=[pb.TIER_EXACT], min_similarity=-1)
        self.assert_miss(exact, pb.MISS_REASON_BYPASSED)
        self.assertFalse(exact.receipt.HasField("min_similarity"))
        self.assert_hit(self.lookup("one two three", tiers=[pb.TIER_EXACT]), pb.TIER_EXACT)
        semantic = self.lookup("one two three", tiers=[pb.TIER_SEMANTIC])
        self.assert_hit(semantic, pb.TIER_SEMANTIC)
        self.assertGreater(semantic.receipt.similarity, 0.98)
        both = [pb.TIER_SEMANTIC, pb.TIER_EXACT]
        self.assert_hit(self.lookup("one two three", tiers=both), pb.TIER_EXACT)

    def test_lookup_can_be_bypassed(self):
        self.store("q")
        self.assert_miss(self.lookup("q", bypass=True), pb.MISS_REASON_BYPASSED)
        self.assert_hit(self.lookup("q"), pb.TIER_EXACT)

    def test_lookup_remembers_the_vector(self):
        self.store("something else")
        receipts = [self.lookup("a new question").receipt for _ in range(2)]
        self.assertEqual([receipt.memoized for receipt in receipts], [False, True])

    def test_lookup_matches_prompts_too_long_for_the_model_exactly_only(self):
        beginning = "the same words at the start " * 200
        self.assertTrue(self.store(beginning + "one", b"1").exact_only)
        other = self.lookup(beginning + "two", min_similarity=-1)
        self.assert_miss(other, pb.MISS_REASON_PARTLY_READ)
        self.assertEqual(self.lookup(beginning + "one").entry.response, b"1")

    def test_lookup_sees_nothing_of_other_namespaces(self):
        self.store("q")
        found = self.lookup("q", namespace=f"{self.namespace}-other", min_similarity=-1)
        self.assert_miss(found, pb.MISS_REASON_EMPTY)

    def test_lookup_refuses_bad_prompts(self):
        limits = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits
        too_long = "x" * (limits.prompt_bytes_max + 1)
        for text in ("", " \r\n\t", too_long):
            with self.subTest(text[:10]):
                self.assert_refused("prompt", self.lookup, text)
                self.assert_refused("prompt", self.store, text)
        for missing in (None, pb.Prompt()):
            with self.subTest(missing):
                self.assert_refused("prompt", self.lookup, "", prompt=missing)
                self.assert_refused("prompt", self.store, "", prompt=missing)

    def test_lookup_refuses_bad_terms(self):
        for similarity in (2, -1.01, math.nan, math.inf):
            with self.subTest(similarity):
                self.assert_refused("min_similarity", self.lookup, "q", min_similarity=similarity)
        self.assert_refused("max_age", self.lookup, "q", max_age=seconds(-1))
        for tier in (pb.TIER_UNSPECIFIED, 77):
            with self.subTest(tier):
                self.assert_refused("tiers", self.lookup, "q", tiers=[tier])

    def test_lookup_refuses_bad_attributes(self):
        many = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits.attributes_max + 1
        bad = [{"": "v"}, {"a b": "v"}, {"k" * 65: "v"}, {"ключ": "v"}]
        bad += [{"k": "v" * 1025}, {f"k{i}": "" for i in range(many)}]
        for attributes in bad:
            with self.subTest(str(attributes)[:20]):
                self.assert_refused("attributes", self.lookup, "q", attributes=attributes)
                self.assert_refused("attributes", self.store, "q", attributes=attributes)


class BatchLookup(Case):
    def batch(self, *requests):
        request = pb.BatchLookupRequest(namespace=self.namespace, requests=requests)
        return self.cache.BatchLookup(request).results

    def test_batch_lookup_answers_in_order_and_one_bad_item_fails_alone(self):
        self.store("q", b"1")
        results = self.batch(
            self.ask("q", namespace=""),
            self.ask(""),
            self.ask("q", namespace="another"),
            self.ask("elsewhere", min_similarity=-1),
            self.ask("q", bypass=True),
        )
        kinds = [result.WhichOneof("result") for result in results]
        self.assertEqual(kinds, ["response", "error", "error", "response", "response"])
        self.assert_hit(results[0].response, pb.TIER_EXACT)
        self.assert_hit(results[3].response, pb.TIER_SEMANTIC)
        self.assert_miss(results[4].response, pb.MISS_REASON_BYPASSED)
        for at, field in ((1, "requests[1].prompt"), (2, "requests[2].namespace")):
            error = results[at].error
            self.assertEqual(error.code, grpc.StatusCode.INVALID_ARGUMENT.value[0])
            self.assertEqual((error.reason, error.field), ("INVALID_FIELD", field))
            self.assertNotEqual(error.message, "")

    def test_batch_lookup_refuses_no_question_and_too_many(self):
        self.assert_refused("requests", self.batch)
        limits = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits
        self.assert_refused("requests", self.batch, *[self.ask("q")] * (limits.batch_max + 1))


class Store(Case):
    def test_store_replaces_what_stood_under_the_same_prompt(self):
        first = self.store("q", b"1")
        second = self.store(" q\n", b"2")
        self.assertEqual((first.created, second.created), (True, False))
        self.assertEqual(first.entry_id, second.entry_id)
        self.assertRegex(first.entry_id, "^[0-9a-f]{40}$")
        self.assertEqual(self.lookup("q").entry.response, b"2")
        other = self.store("q", b"3", attributes={"k": "v"})
        self.assertTrue(other.created)
        self.assertNotEqual(other.entry_id, first.entry_id)
        self.assertEqual(len(self.list().entries), 2)

    def test_store_keeps_an_entry_for_its_ttl(self):
        stored = self.store("q", ttl=seconds(HOUR_SECONDS))
        entry = self.get(stored.entry_id)
        self.assertEqual(entry.expire_time, stored.expire_time)
        life = milliseconds(entry.expire_time) - milliseconds(entry.create_time)
        self.assertEqual(life, HOUR_SECONDS * 1000)

    def test_store_forgets_an_entry_after_its_ttl(self):
        self.store("q", ttl=Duration(nanos=50_000_000))
        missed = lambda: self.lookup("q").receipt.outcome == pb.OUTCOME_MISS
        self.eventually("the entry ends", missed)
        self.assertEqual(len(self.list().entries), 0)

    def test_store_keeps_an_entry_until_its_expire_time(self):
        until = Timestamp(seconds=int(time.time()) + HOUR_SECONDS, nanos=123_000_000)
        stored = self.store("q", expire_time=until)
        self.assertEqual(stored.expire_time, until)
        self.assertEqual(self.get(stored.entry_id).expire_time, until)

    def test_store_gives_a_life_to_an_entry_that_brings_none(self):
        stored = self.store("q")
        created = self.get(stored.entry_id).create_time
        self.assertGreater(milliseconds(stored.expire_time), milliseconds(created))

    def test_store_acts_once_for_a_request_id(self):
        first = self.store("q", b"1", request_id="r1")
        again = self.store("q", b"2", request_id="r1")
        self.assertEqual((first.created, again.created), (True, True))
        self.assertEqual(first.entry_id, again.entry_id)
        self.assertEqual(self.lookup("q").entry.response, b"1")
        self.assertFalse(self.store("q", b"3", request_id="r2").created)
        self.assertEqual(self.lookup("q").entry.response, b"3")

    def test_store_repeats_the_first_expire_time_for_a_request_id(self):
        first = self.store("q", request_id="r1")
        # So many that the server's clock moves on meanwhile.
        for _ in range(20):
            self.assertEqual(self.store("q", request_id="r1").expire_time, first.expire_time)
        self.assertEqual(self.get(first.entry_id).expire_time, first.expire_time)

    def test_store_keeps_usage_and_category(self):
        latency = Duration(seconds=1, nanos=5000)
        usage = pb.Usage(input_tokens=11, output_tokens=22, cost_micros=33, latency=latency)
        stored = self.store("q", usage=usage, category="billing.de")
        entry = self.get(stored.entry_id)
        self.assertEqual((entry.usage, entry.category), (usage, "billing.de"))

    def test_store_keeps_content_types_and_any_bytes(self):
        default = self.store("plain").entry_id
        self.assertEqual(self.get(default).content_type, "text/plain; charset=utf-8")
        for content_type, response in (
            ("application/json", b'{"a": [1, "\xc3\xa9"]}'),
            ("application/octet-stream", bytes(range(256))),
            ("image/png", b"\x89PNG\r\n\x1a\n\x00"),
        ):
            with self.subTest(content_type):
                self.store(content_type, response, content_type=content_type)
                entry = self.lookup(content_type).entry
                self.assertEqual((entry.content_type, entry.response), (content_type, response))

    def test_store_keeps_a_response_of_the_longest_allowed(self):
        limits = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits
        response = b"0123456789abcdef" * (limits.response_bytes_max // 16)
        self.store("q", response)
        self.assertEqual(self.lookup("q").entry.response, response)
        self.assert_refused("response", self.store, "q", b"x" * (limits.response_bytes_max + 1))

    def test_store_refuses_bad_responses(self):
        self.assert_refused("response", self.store, "q", b"")
        for named in ("", "text/plain", "text/html; charset=UTF-8", "application/json"):
            with self.subTest(named):
                not_text = self.answer("q", b"\xff\xfe", content_type=named)
                self.assert_refused("response", self.cache.Store, not_text)
        self.assert_refused("content_type", self.store, "q", content_type="text/\nplain")
        self.assertEqual(len(self.list().entries), 0)

    def test_store_refuses_bad_lives(self):
        ttl_max = self.admin.GetServerInfo(pb.GetServerInfoRequest()).limits.ttl_max.seconds
        for ttl in (seconds(0), seconds(-1), seconds(ttl_max + 1)):
            with self.subTest(ttl):
                self.assert_refused("ttl", self.store, "q", ttl=ttl)
        now = int(time.time())
        for moment in (0, now - HOUR_SECONDS, now + ttl_max + HOUR_SECONDS):
            with self.subTest(moment):
                until = Timestamp(seconds=moment)
                self.assert_refused("expire_time", self.store, "q", expire_time=until)
        self.assertEqual(len(self.list().entries), 0)

    def test_store_refuses_bad_labels(self):
        self.assert_refused("category", self.store, "q", category="a b")
        self.assert_refused("request_id", self.store, "q", request_id="r" * 129)
        excessive = pb.Usage(cost_micros=2**64 - 1)
        self.assert_refused("usage.cost_micros", self.store, "q", usage=excessive)


class Entries(Case):
    def test_get_entry_reads_what_was_stored(self):
        stored = self.store("q", b"r", attributes={"k": "v"})
        entry = self.get(stored.entry_id)
        self.assertEqual(entry.id, stored.entry_id)
        self.assertEqual((entry.prompt.text, entry.response), ("q", b"r"))
        self.assertEqual(dict(entry.attributes), {"k": "v"})

    def test_get_entry_does_not_find_what_is_not_there(self):
        not_found = grpc.StatusCode.NOT_FOUND
        self.assert_failed(not_found, "ENTRY_NOT_FOUND", self.get, ENTRY_ID_UNKNOWN)

    def test_bad_entry_ids_are_refused(self):
        for entry_id in ("", "zz", "g" * 40, "0" * 39, "0" * 42):
            with self.subTest(entry_id):
                self.assert_refused("entry_id", self.get, entry_id)
                self.assert_refused("entry_id", self.delete, entry_id)

    def test_list_entries_pages_through_all_soonest_to_expire_first(self):
        numbers = {}
        for i in range(5):
            life = seconds(HOUR_SECONDS * (5 - i))
            numbers[self.store(f"q{i}", ttl=life).entry_id] = i
        token, pages = "", []
        while not pages or token:
            page = self.list(page_size=2, page_token=token)
            pages.append([numbers[entry.id] for entry in page.entries])
            token = page.next_page_token
        self.assertEqual(pages, [[4, 3], [2, 1], [0]])
        # More than the limit is cut to it; nothing asked for is a page of the usual size.
        for size in (0, 2**32 - 1):
            self.assertEqual(len(self.list(page_size=size).entries), 5)

    def test_list_entries_can_leave_the_responses_out(self):
        self.store("q", b"r", category="c")
        entry = self.list(omit_responses=True).entries[0]
        self.assertEqual((entry.prompt.text, entry.category, entry.response), ("q", "c", b""))
        self.assertEqual(self.list().entries[0].response, b"r")

    def test_list_entries_of_an_empty_namespace_is_empty(self):
        page = self.list()
        self.assertEqual((len(page.entries), page.next_page_token), (0, ""))

    def test_list_entries_refuses_tokens_it_did_not_give_out(self):
        for token in ("x", "AAAA", "not base64!"):
            with self.subTest(token):
                self.assert_refused("page_token", self.list, page_token=token)

    def test_delete_entry_deletes_once(self):
        entry_id = self.store("q").entry_id
        self.delete(entry_id)
        not_found = grpc.StatusCode.NOT_FOUND
        self.assert_failed(not_found, "ENTRY_NOT_FOUND", self.delete, entry_id)
        self.assert_failed(not_found, "ENTRY_NOT_FOUND", self.get, entry_id)
        self.assert_miss(self.lookup("q"), pb.MISS_REASON_EMPTY)

    def test_delete_entry_acts_once_for_a_request_id(self):
        entry_id = self.store("q").entry_id
        self.delete(entry_id, request_id="d1")
        self.store("q")
        self.delete(entry_id, request_id="d1")
        self.assertEqual(self.get(entry_id).id, entry_id)


class Invalidate(Case):
    def setUp(self):
        super().setUp()
        both = {"tier": "gold", "locale": "en"}
        self.a = self.store("a", attributes=both, category="x").entry_id
        self.b = self.store("a", attributes={"tier": "gold"}, category="y").entry_id
        self.c = self.store("b", category="x").entry_id

    def check(self, gone, **parts):
        """A selector means these entries: a dry run counts them, the real one deletes them."""
        self.assertEqual(self.invalidate(dry_run=True, **parts), len(gone))
        self.assertEqual(len(self.list().entries), 3)
        self.assertEqual(self.invalidate(**parts), len(gone))
        left = {entry.id for entry in self.list().entries}
        self.assertEqual(left, {self.a, self.b, self.c} - gone)
        self.assertEqual(self.invalidate(**parts), 0)

    def test_invalidate_entries_by_id(self):
        self.check({self.a, self.c}, entry_ids=[self.a, self.c, ENTRY_ID_UNKNOWN])

    def test_invalidate_entries_by_prompt(self):
        self.check({self.a, self.b}, prompt=prompt(" a "))

    def test_invalidate_entries_by_attributes(self):
        self.check({self.a, self.b}, attributes={"tier": "gold"})

    def test_invalidate_entries_by_category(self):
        self.check({self.a, self.c}, category="x")

    def test_invalidate_entries_by_age(self):
        self.assertEqual(self.invalidate(older_than=seconds(HOUR_SECONDS)), 0)
        moment = Duration(nanos=1_000_000)
        aged = lambda: self.invalidate(dry_run=True, older_than=moment) == 3
        self.eventually("all entries are older than a millisecond", aged)
        self.check({self.a, self.b, self.c}, older_than=moment)

    def test_invalidate_entries_that_match_every_part(self):
        self.check({self.a}, attributes={"tier": "gold"}, category="x", prompt=prompt("a"))

    def test_invalidate_all_entries(self):
        self.check({self.a, self.b, self.c}, all=True)

    def test_invalidate_entries_acts_once_for_a_request_id(self):
        selectors = [{"all": True}, {"category": "x"}, {"entry_ids": [self.a]}]
        for number, parts in enumerate(selectors):
            with self.subTest(parts):
                request_id = f"i{number}"
                first = self.invalidate(request_id=request_id, **parts)
                self.store("a", attributes={"tier": "gold", "locale": "en"}, category="x")
                self.assertEqual(self.invalidate(request_id=request_id, **parts), first)
                self.assertEqual(self.get(self.a).id, self.a)

    def test_invalidate_entries_refuses_selectors_that_are_likely_mistakes(self):
        self.assert_refused("selector", self.invalidate)
        nothing = pb.InvalidateEntriesRequest(namespace=self.namespace)
        self.assert_refused("selector", self.cache.InvalidateEntries, nothing)
        self.assert_refused("selector.all", self.invalidate, all=True, category="x")
        self.assert_refused("selector.entry_ids[0]", self.invalidate, entry_ids=["zz"])
        self.assert_refused("selector.prompt", self.invalidate, prompt=prompt(""))
        self.assert_refused("selector.attributes", self.invalidate, attributes={"a{b}": ""})
        self.assert_refused("selector.category", self.invalidate, category="a b")
        self.assert_refused("selector.older_than", self.invalidate, older_than=seconds(-1))
        self.assertEqual(len(self.list().entries), 3)


class Server(Case):
    def test_get_cache_stats_adds_up(self):
        usage = pb.Usage(input_tokens=10, output_tokens=20, cost_micros=7, latency=seconds(2))
        self.lookup("q")
        self.store("q", usage=usage)
        for _ in range(3):
            self.lookup("q")
        self.lookup("another", min_similarity=-1)
        self.lookup("q", bypass=True)
        request = pb.GetCacheStatsRequest(namespace=self.namespace)

        def complete():
            stats = self.cache.GetCacheStats(request)
            return stats if (stats.lookups, stats.stores) == (6, 1) else None

        # A sidecar adds its counters to the shared ones about once a second.
        stats = self.eventually("the counters arrive", complete)
        self.assertEqual((stats.entries, stats.exact_hits, stats.semantic_hits), (1, 3, 1))
        self.assertEqual(stats.misses, 2)
        self.assertEqual(dict(stats.misses_by_reason), {"empty": 1, "bypassed": 1})
        saved = pb.Usage(input_tokens=40, output_tokens=80, cost_micros=28, latency=seconds(8))
        self.assertEqual(stats.saved, saved)

    def test_get_server_info_describes_the_server(self):
        info = self.admin.GetServerInfo(pb.GetServerInfoRequest())
        self.assertRegex(info.version, r"^\d+\.\d+\.\d+")
        self.assertIn(info.engine, ("embedded", "redis"))
        self.assertGreater(len(info.engine_details), 0)
        self.assertEqual(info.model, self.embedding.GetModel(pb.GetModelRequest()).model)
        self.assertTrue(0 < info.start_time.seconds <= time.time() + 1)
        for field, value in info.limits.ListFields():
            self.assertTrue(value, field.name)
        self.assertEqual(len(info.limits.ListFields()), len(info.limits.DESCRIPTOR.fields))

    def test_every_rpc_with_a_namespace_refuses_bad_ones(self):
        calls = {
            self.embedding.Embed: pb.EmbedRequest(texts=["a"]),
            self.cache.Lookup: self.ask("q"),
            self.cache.BatchLookup: pb.BatchLookupRequest(requests=[self.ask("q", namespace="")]),
            self.cache.Store: self.answer("q"),
            self.cache.GetEntry: pb.GetEntryRequest(entry_id=ENTRY_ID_UNKNOWN),
            self.cache.ListEntries: pb.ListEntriesRequest(),
            self.cache.DeleteEntry: pb.DeleteEntryRequest(entry_id=ENTRY_ID_UNKNOWN),
            self.cache.InvalidateEntries: pb.InvalidateEntriesRequest(
                selector=pb.EntrySelector(all=True)
            ),
            self.cache.GetCacheStats: pb.GetCacheStatsRequest(),
        }
        for call, request in calls.items():
            for namespace in ("", "a{b}", "a b", "é", "n" * 65):
                with self.subTest(type(request).__name__, namespace=namespace):
                    request.namespace = namespace
                    self.assert_refused("namespace", call, request)

    def test_health_check_serves_every_service(self):
        health = health_pb2_grpc.HealthStub(server.channel)
        services = {path.split("/")[1] for path in server.declared}
        for service in ("", *sorted(services)):
            with self.subTest(service):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service))
                self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as raised:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        self.assertIs(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_health_watch_tells_the_state_at_once(self):
        health = health_pb2_grpc.HealthStub(server.channel)
        states = health_pb2.HealthCheckResponse
        for service, state in (("", states.SERVING), ("nobody", states.SERVICE_UNKNOWN)):
            with self.subTest(service):
                request = health_pb2.HealthCheckRequest(service=service)
                watch = health.Watch(request, timeout=CALL_SECONDS_MAX)
                self.assertEqual(next(watch).status, state)
                watch.cancel()

    def test_reflection_lists_every_service_and_method(self):
        listed = ProtoReflectionDescriptorDatabase(server.channel).get_services()
        services = {path.split("/")[1] for path in server.declared}
        self.assertLessEqual(services | {"grpc.health.v1.Health"}, set(listed))
        self.assertEqual(reflected_methods(server.channel), server.declared)

    def test_reflection_answers_new_clients_too(self):
        # The messages of v1 are those of v1alpha under another name.
        ask = server.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(ask(iter([question]), timeout=CALL_SECONDS_MAX))
        listed = {service.name for service in answer.list_services_response.service}
        self.assertLessEqual({path.split("/")[1] for path in server.declared}, listed)


def main():
    parser = argparse.ArgumentParser(description="Drive every rpc of a running sidecar.")
    parser.add_argument("--address", required=True, help="host:port of the sidecar's gRPC")
    parser.add_argument("--proto", required=True, type=pathlib.Path, help="folder of the protos")
    arguments = parser.parse_args()
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="refrain-stubs-") as folder:
        server.declared = generate(arguments.proto.resolve(), folder)
        # A proxy that the environment names is not on the way to a sidecar.
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(arguments.address, options=options) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=CALL_SECONDS_MAX)
            except grpc.FutureTimeoutError:
                sys.exit(f"error: no server answers at {arguments.address}")
            server.channel = grpc.intercept_channel(channel, recorder)
            suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
            result = unittest.TextTestRunner(verbosity=2).run(suite)
            uncalled = (reflected_methods(channel) | server.declared) - recorder.succeeded
    for method in sorted(uncalled):
        print(f"error: no test got an answer from {method}", file=sys.stderr)
    sys.exit(bool(uncalled) or not result.wasSuccessful())


if __name__ == "__main__":
    main()
