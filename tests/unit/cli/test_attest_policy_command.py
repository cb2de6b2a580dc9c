"""``cordon attest policy``: from an image to a policy that can be signed."""

import base64
import zlib

import pytest

from cordon import documents
from cordon.attest.dcap.policy import TdxPolicy
from cordon.attest.policy import AttestationPolicy
from cordon.attest.snp.policy import SnpPolicy
from cordon.cli import main
from fakes import open_policies

# The last 4 KiB of OVMF.fd (edk2-stable202405, OvmfPkg/AmdSev): tests/fixtures/ovmf_AmdSev_suffix.bin of
# virtee/sev-snp-measure (Apache-2.0) at 8f2b337, zlib and base85. It holds the tables that decide what is measured.
OVMF = zlib.decompress(
    base64.b85decode(
        r"c-rk&eQXp}5Py5O*Iv_uUFww{(DttFp%`uLRgsq3*g{*1eARd~1r!DBsYp=TTT`&WZI@G)!{g!yK?#w75rPRA!Enb%*xFA)(xzyvR-2=Ubh{=N!G"
        r"6<q-rkme82#6ebduYdH*e;>-<z2??__y`CTM~t=)XlNVFzbyuCL5<J04!&(X%Jw#4$o&5Q%yX2u(vOStHRjn~;oXgtA~Lm#$#T=`BK;orz=1jhC`"
        r"6E@6ypx#|2X@q3v_wmg=<@yG{^MzVrc`SsnqnOd;Q+7-KuIR{qn&*s-KC&9{HoqUBk#+6$U^ATUIEw(TRqzL~7Aih=_;%mj$2!w2{d>h~4@H~@Bw"
        r"3KE_+U(Lt-GVcX6T(ZAt-ZU7W4fy?&Q4E(k-Z9sK@nd%e<Z4$n$mAw<xyHDOp0*}Oc>uFU9<^&ox7XSIETcYur4g}EGL*U8p?`Y<yzV~1HMttG>?"
        r"hBhS!13vN=IpnrR)BS~-Dqu<1)yGRf5G;>U<;HnT7fA;zqoKT9&hBwy`dGmBO-leP2poG^<zy(;Yf7D?yFp%W`$IUmrizE06Q^_$$I()J~9rgtB="
        r"=N9ERfdK)(Fl?EvM@X0hyg^oij%AgIVFBA9K^~Du%?*=<4e?-zX~)lh>Qe3gV%|4)UNe3ksq@c`^%r^gP?jKdrb9<125qh4%UT>}COrTS0+j|6dM"
        r"ee{8o-FD!;?q=QZ|FCzgafGPcp!Os{akdXd1+`ij748A2XFGbgt`><#gn3bw*_vW@1|=I>R^<TQUYVs~bX$zfQ9MwlpXn4+k_C0XNr6P&-x;SkO>"
        r"AZh|0o0VY=#jsZ*^fK39(1VtwB<XeOCcGTWeufqpSqFtz7N2*5!9gLGKijE%E>9H;q>kM~wG}dKfo$;>Dgmr~j7pv+52vWy46jTMHb=P3blb3tVU"
        r"_f3TG>0tOuZr`CKZ6tR)hcNIDTKUHLD+s>%!KfYAO4%;cNLg~{1^?D*dngIBg@K#qz<tI3raRJOcC4v(#Dd7%u=>*qqAfKlkZoG?odw^u5sra)tc"
        r")~sCdAiplqwUF9drghV9>A&n;#sw$B2@ge&fn#wJJ_={;yK7H$YRBVAdz&XKc6qU&_H?lj!B$N4xtNRqYR-!LT06hU|9_RBJj9DWn>ws-|^(A(i{"
        r"f_2)YQ(_Z|0~{(^4WqX;AH*wWi}7%xIvth?@gBGVBQ`n(is%{)b)FE7zQH+9<rO`z_Kxu3JMB|@$w81)Rk;adTI~VBkgVMIu8>SBzN{kCSfoMj3i"
        r"<l6Q&o_jgr)%g=0GYz2vq7ViumrfbZ1NtSQfzR_>){NoJnL+GD%v7bFEQxZBQzU6V~B$Zx0nCu=e&q1g;ZsafMvObr2a(v<cQ08zBY({EqqYR&~%"
        r"d+xyQUREhkrfl&%Ym~fh1)S)ahu!_}wvofO21c|aI12&8q8dngN<%Y6H9LDSL(Kvr2(?l7<S#9AY%Vwnq*_x?OzK0@Kdo8bkktkPItWpdi8==r&p"
        r"@JwrrvP6&07XjtP23tixz<=u9L`064&p#rl}nOqB~`9hxdC%-08u*x5HbiRjN42iXV@aHDpk7S$uaSy)sqv;gQq9Q0!;78u>v!QxKiqL7$~uV>no"
        r"+)>!G-~U$9N=$dNTv<*Q23f!Y)TnFgYfw_9ldY2tdxt#hk_@gBQ1mTMqK9b?$I3SMjqF!t#vcO%51sw18^?r_N9ES-lXjNnSEejWh(G$36JFzr?Y"
        r"S7UK-q*c@ClaUWx)rV^gDHZ8eit>NWFArjlV=z|Ve-?FlThBHOr8p=e#^F!GH!e|dbe<T(t;U}nhR4BiEvMM`IBFWgePjHquS9u&V~D@gI8MJu)e"
        r"nzPpbPT~C7pw>fiBi3ZjwXS2T3~dJ}7eW`0wzsz{4%pz|-!>e?$us>IxES3leGy_@Mmr-Tj;3c27mKOSb&<#J+tC-dLUQK61hPg<XfWj*^`}VC|9"
        r"B%R&3XSIEFBO=&tZ&skoYIhS1Y_UmyU|9bRmyV9i$cxKJXl*RkERxft3Q5C)`&F|v-JQcNV>OtG4Us}dbezAVrL#LMRL~WIy@BPf&lXs@`u%mXRK"
        r"6!L3itPFL-^o$JsS_Ur=;9RF_Xj3&GGG"
    )
)
# tests/test_guest.py there: (arguments, digest)
PUBLISHED = [
    (
        {"vcpus": 1, "append": "console=ttyS0 loglevel=7", "guest-features": "0x21"},
        "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
    ),
    (
        {"vcpus": 1, "append": "console=ttyS0 loglevel=7"},
        "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
    ),
    (
        {"vcpus": 4, "append": ""},
        "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
    ),
    (
        {"vcpus": 1, "append": "", "guest-features": "0x21", "vmm-type": "ec2"},
        "0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb",
    ),
]
WITHOUT_KERNEL = "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"
OTHER = "ab" * 48


@pytest.fixture
def base(tmp_path):
    """A policy for SNP and TDX that asks for nothing but a debug-free guest."""
    snp = open_policies.anything(SnpPolicy)
    snp["policy"]["debug"] = False
    tdx = open_policies.anything(TdxPolicy) | {"debug": False}
    path = tmp_path / "base.yml"
    path.write_text(open_policies.as_yaml(open_policies.policy("snp", "tdx", snp=snp, tdx=tdx)))
    return path


@pytest.fixture
def image(tmp_path):
    """Firmware, and a kernel and a RAM disk of no bytes, as the published digests have them."""
    (tmp_path / "OVMF.fd").write_bytes(OVMF)
    (tmp_path / "kernel").write_bytes(b"")
    return tmp_path


def _snp(base, *args):
    return main(["attest", "policy", "snp", "--base", str(base), *map(str, args)])


def _options(values):
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize(("values", "digest"), PUBLISHED)
def test_the_published_measurement_comes_out(base, image, monkeypatch, tmp_path, values, digest):
    monkeypatch.setattr("cordon.cli.attest.policy.MIN_FILE", 0)  # the published digests are of a kernel of no bytes
    out = tmp_path / "out.yml"
    options = [*_options(values), "--vcpu-type=EPYC-v4", f"--ovmf={image / 'OVMF.fd'}", f"--kernel={image / 'kernel'}"]
    assert _snp(base, *options, "--out", out) == 0
    assert documents.load(out, AttestationPolicy).snp.measurement == (digest,)


def test_the_published_measurement_without_a_kernel(base, image, tmp_path):
    out = tmp_path / "out.yml"
    assert _snp(base, "--ovmf", image / "OVMF.fd", "--vcpus=1", "--vcpu-type=EPYC-v4", "--out", out) == 0
    assert documents.load(out, AttestationPolicy).snp.measurement == (WITHOUT_KERNEL,)


def test_nothing_but_the_measurement_differs_from_the_base(base, tmp_path, capsys):
    out = tmp_path / "out.yml"
    assert _snp(base, "--measurement", OTHER.upper(), "--measurement", "cd" * 48, "--out", out) == 0
    before = documents.body_of(documents.load(base, AttestationPolicy))
    after = documents.body_of(documents.load(out, AttestationPolicy))
    assert after["snp"].pop("measurement") == (OTHER, "cd" * 48)
    before["snp"].pop("measurement")
    assert after == before
    said = capsys.readouterr().out
    assert OTHER in said
    assert f"cordon sign --key KEY --as attestation {out}" in said
    assert "snp.vmpl" in said  # among the fields that nobody looks at


def test_the_derived_policy_can_be_signed(base, tmp_path):
    out, key = tmp_path / "out.yml", tmp_path / "key.pem"
    assert _snp(base, "--measurement", OTHER, "--out", out) == 0
    assert main(["keygen", "--out", str(key)]) == 0
    assert main(["sign", "--key", str(key), "--as", "attestation", str(out)]) == 0


def test_without_out_the_policy_alone_goes_to_stdout(base, capsys):
    assert _snp(base, "--measurement", OTHER) == 0
    said = documents.parse(capsys.readouterr().out.encode(), AttestationPolicy, "stdout")
    assert said.snp.measurement == (OTHER,)


def test_tdx_values_are_put_in_and_what_is_not_given_stays(base, tmp_path):
    out = tmp_path / "out.yml"
    options = ["--mrtd", "01" * 48, "--rtmr1", "02" * 48, "--rtmr1", "03" * 48]
    assert main(["attest", "policy", "tdx", "--base", str(base), *options, "--out", str(out)]) == 0
    tdx = documents.load(out, AttestationPolicy).tdx
    assert (tdx.mr_td, tdx.rtmr0, tdx.rtmr1) == (("01" * 48,), "any", ("02" * 48, "03" * 48))


def test_an_existing_file_is_never_overwritten(base, tmp_path, capsys):
    out = tmp_path / "out.yml"
    out.write_text("precious")
    assert _snp(base, "--measurement", OTHER, "--out", out) == 3
    assert out.read_text() == "precious"
    assert capsys.readouterr().err.startswith("cordon: output_exists: ")


def test_a_comment_cannot_be_broken_out_of(base, image, monkeypatch, capsys):
    """The command line goes into a comment of the file: a line break in it must not become a field."""
    monkeypatch.setattr("cordon.cli.attest.policy.MIN_FILE", 0)
    options = ["--vcpus=1", "--vcpu-type=EPYC-v4", f"--ovmf={image / 'OVMF.fd'}", f"--kernel={image / 'kernel'}"]
    assert _snp(base, *options, "--append", "quiet\nprofile: poc\r\n\u2028x: y") == 0
    text = capsys.readouterr().out
    assert not [line for line in text.splitlines() if line.startswith(("profile: poc\r", "x: y"))]
    documents.parse(text.encode(), AttestationPolicy, "stdout")


BAD_IMAGES = [
    ("no firmware", {"ovmf": b"x" * 4096}, "image_format"),
    ("half a page", {"ovmf": OVMF[:-100]}, "image_format"),
    ("no table", {"ovmf": bytes(4096)}, "image_format"),
    ("short", {"ovmf": b"\x00"}, "image_format"),
    ("table cut", {"ovmf": OVMF[:-48] + b"\xff\xff" + OVMF[-46:]}, "image_format"),
    ("empty", {"ovmf": b""}, "input_empty"),
    ("empty kernel", {"ovmf": OVMF, "kernel": b""}, "input_empty"),
]


@pytest.mark.parametrize(("files", "code"), [each[1:] for each in BAD_IMAGES], ids=[each[0] for each in BAD_IMAGES])
def test_what_is_no_image_is_refused(base, tmp_path, capsys, files, code):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    options = [f"--{name}={tmp_path / name}" for name in files]
    assert _snp(base, *options, "--vcpus=1", "--vcpu-type=EPYC-v4") == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"cordon: {code}: ")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--measurement", "ab"], "hex_format"),
        (["--measurement", "zz" * 48], "hex_format"),
        (["--measurement", OTHER, "--vcpus", "2"], "usage"),
        (["--ovmf", "OVMF.fd"], "image_format"),
        (["--ovmf", "OVMF.fd", "--vcpus", "0", "--vcpu-type", "EPYC-v4"], "image_format"),
        (["--ovmf", "OVMF.fd", "--vcpus", "1", "--vcpu-type", "486"], "image_format"),
        (["--ovmf", "OVMF.fd", "--vcpus", "1", "--vcpu-type", "EPYC-v4", "--append", "x"], "image_format"),
        (["--ovmf", "OVMF.fd", "--vcpus", "1", "--vcpu-type", "EPYC-v4", "--guest-features", "one"], "image_format"),
        (["--ovmf", ".", "--vcpus", "1", "--vcpu-type", "EPYC-v4"], "input_unreadable"),
        (["--ovmf", "none", "--vcpus", "1", "--vcpu-type", "EPYC-v4"], "input_unreadable"),
    ],
)
def test_bad_arguments(base, image, monkeypatch, capsys, options, code):
    monkeypatch.chdir(image)
    assert _snp(base, *options) == 3
    assert capsys.readouterr().err.startswith(f"cordon: {code}: ")


@pytest.mark.parametrize(
    ("base", "kind", "options"),
    [
        *((base, "snp", ["--measurement", OTHER]) for base in ("snp", "snp-h100", "azure-snp")),
        *((base, "tdx", ["--mrtd", OTHER, "--rtmr0", OTHER]) for base in ("tdx", "tdx-h100", "azure-tdx")),
    ],
)
def test_the_shipped_policies_are_bases(repo_root, tmp_path, base, kind, options):
    """All but the measurement is as shipped, and the file is one that a production kit would take."""
    out, path = tmp_path / "out.yml", repo_root / "cc_config" / "policy" / f"{base}.yml"
    assert main(["attest", "policy", kind, "--base", str(path), *options, "--out", str(out)]) == 0
    before, after = documents.load(path, AttestationPolicy), documents.load(out, AttestationPolicy)
    assert after.profile == "production"
    changed = {"snp": ("measurement",), "tdx": ("mr_td", "rtmr0")}[kind]
    assert all(getattr(getattr(after, kind), field) == (OTHER,) for field in changed)
    bodies = [documents.body_of(each) for each in (before, after)]
    for body in bodies:
        for field in changed:
            del body[kind][field]
    assert bodies[0] == bodies[1]


def test_a_base_without_the_section_is_refused(tmp_path, capsys):
    path = tmp_path / "base.yml"
    tdx = open_policies.anything(TdxPolicy)
    path.write_text(open_policies.as_yaml(open_policies.policy("tdx", tdx=tdx)))
    assert _snp(path, "--measurement", OTHER) == 3
    assert "has no section snp" in capsys.readouterr().err


def test_a_base_that_is_no_policy_is_refused(tmp_path, capsys):
    path = tmp_path / "base.yml"
    path.write_bytes(b"\xff\xfe")
    assert _snp(path, "--measurement", OTHER) == 3
    assert capsys.readouterr().err.startswith("cordon: policy_format: ")
