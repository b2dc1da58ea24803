"""Roles, names and passwords of people."""

from __future__ import annotations

import pytest

from controlplane.domain.catalog import Scope
from controlplane.domain.people import Role, password_fault, plain_name, standing_fault


class TestRoles:
    """They are compared by what they may do, never as texts; a higher one may all that a lower one may."""

    def test_order(self):
        assert sorted(Role, key=lambda role: role.rank) == [Role.VIEWER, Role.SENDER, Role.OPERATOR, Role.ADMIN]
        assert Role.ADMIN > Role.OPERATOR > Role.SENDER > Role.VIEWER
        assert Role.VIEWER <= Role.VIEWER < Role.SENDER
        assert not Role.ADMIN < Role.VIEWER  # "admin" < "viewer" as texts
        assert max(Role) is Role.ADMIN

    def test_a_word_that_is_no_role(self):
        with pytest.raises(ValueError):
            assert Role.ADMIN > "emperor"

    def test_scopes(self):
        assert Role.VIEWER.scopes < Role.SENDER.scopes
        assert Scope.MESSAGES_WRITE not in Role.VIEWER.scopes
        assert {Scope.ADMIN} == Role.OPERATOR.scopes == Role.ADMIN.scopes

    def test_nobody_of_a_tenant_runs_the_deployment(self):
        assert [role for role in Role if standing_fault(role, "sample")] == [Role.OPERATOR, Role.ADMIN]
        assert not any(standing_fault(role, "") for role in Role)


class TestNames:
    """One spelling each."""

    def test_as_typed(self):
        assert plain_name("  Ada@Example.COM ") == "ada@example.com"

    @pytest.mark.parametrize("typed", ["", " ", "-", "-/new", ".ada", "a b", "a/b", "ада", "a" * 65, "a<b"])
    def test_none(self, typed):
        assert plain_name(typed) is None


class TestPasswords:
    """Long enough, not the name, not one of those that everybody tries; any characters."""

    @pytest.mark.parametrize(
        "password",
        [
            "a long walk on a short pier", "correct battery horse staple!", "пароль-не-из-словаря", "🗝🌊🍞🎻🪁🧵🌾🐚🪜🧭🪨🫖", "xK2#pQ9!vL4$",
            "            x y z w v", "'; drop table people; --",
        ],
    )  # fmt: skip
    def test_good(self, password):
        assert password_fault(password, "ada") is None

    @pytest.mark.parametrize(
        ("password", "name"),
        [
            ("elevenchars", "ada"), ("", "ada"), ("Passwort123456", "ada"), ("P@ssw0rd", "ada"), ("qwertyuiop123", "ada"), ("Letmein!Please", "ada"),
            ("abababababababab", "ada"), ("abcdefghijklmnop", "ada"), ("lkjhgfdsapoiuytrewq", "ada"), ("98765432109876", "ada"),
            ("my-grace@example.com", "grace@example.com"), ("grace has a pier", "grace@example.com"), ("GRACE has a pier", "grace"), ("x" * 257, "ada"),
        ],
    )  # fmt: skip
    def test_bad(self, password, name):
        assert password_fault(password, name)
