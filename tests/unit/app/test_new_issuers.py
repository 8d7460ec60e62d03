"""Issuers that a document names: made parents first, sealed each for itself, or refused with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from applying import OTHER, rules
from cryptography import x509
from factory import KEK, NOW, make_record

from estd.app.new_issuers import make_issuers
from estd.ca.authority import read_authority
from estd.ca.validity import Validity
from estd.keys.software import unseal

OLD, NEW = rules(), rules(devices=2)


def test_parents_come_first_and_each_key_opens_for_its_own_issuer() -> None:
    made, problems = make_issuers(KEK, None, OLD, None, NOW)
    assert problems == []
    assert [(one.name, one.parent) for one in made] == [("root", None), ("devices", "root")]
    root, devices = (x509.load_der_x509_certificate(one.certificate) for one in made)
    devices.verify_directly_issued_by(root)
    for one in made:
        assert one.sealed_key is not None
        spki = read_authority(one.certificate).spki
        assert unseal(one.sealed_key, KEK, spki).spki == spki


def test_what_is_stored_signs_what_is_new() -> None:
    record = make_record(OLD)
    (devices,), problems = make_issuers(KEK, OLD, NEW, record, NOW)
    assert (devices.name, problems) == ("devices", [])
    root = x509.load_der_x509_certificate(record.issuers[0].certificate)
    x509.load_der_x509_certificate(devices.certificate).verify_directly_issued_by(root)
    assert make_issuers(KEK, OLD, OLD, record, NOW) == ([], [])


def test_a_stored_key_that_another_key_encryption_key_sealed_signs_nothing() -> None:
    made, (problem,) = make_issuers(OTHER, OLD, NEW, make_record(OLD), NOW)
    assert made == []
    assert "another" in str(problem)


def test_a_parent_whose_key_is_elsewhere_signs_nothing() -> None:
    record = make_record(OLD)
    record = replace(record, issuers=tuple(replace(one, sealed_key=None) for one in record.issuers))
    made, (problem,) = make_issuers(KEK, OLD, NEW, record, NOW)
    assert made == []
    assert str(problem).startswith("issuer 'devices': cannot be signed: the key of 'root' is not here")


def test_one_that_cannot_be_made_keeps_those_below_it_away_and_is_told_once() -> None:
    root, devices = OLD.issuers
    late = replace(OLD, issuers=(replace(root, validity=Validity(None, NOW - timedelta(days=1))), devices))
    made, (problem,) = make_issuers(KEK, None, late, None, NOW)
    assert made == []
    assert str(problem).startswith("issuer[root].validity: ends on")


def test_an_expired_parent_is_told_of_at_the_issuer_below_it() -> None:
    made, (problem,) = make_issuers(KEK, OLD, NEW, make_record(OLD), NOW + timedelta(days=9_000))
    assert made == []
    assert str(problem).startswith("issuer[devices].parent: 'root' cannot sign it: ")


def test_those_that_can_be_made_are_made_beside_those_that_cannot() -> None:
    rules = replace(OLD, issuers=(*OLD.issuers, replace(OLD.issuers[0], name="other", validity=_OVER)))
    made, (problem,) = make_issuers(KEK, None, rules, None, NOW)
    assert [one.name for one in made] == ["root", "devices"]
    assert problem.where == "issuer[other].validity"


_OVER = Validity(None, NOW)
