"""Published scores on the test splits, for the tables: what others report, on which lists, and where it stands.

Those of GaLR's Table I used ImageNet weights, skip-thoughts weights and detector output. PIR, HarMA and FISVL choose
their checkpoint by the test score. Of the scores below only the re-runs say how sure they are: the step from AMFMN to
GaLR as published is one standard deviation of a seed. Each number is as printed: the mR of AMFMN-soft on RSICD is not
the mean of its recalls (16.16), nor, in the last digit, are those of SCAN i2t.
"""

from __future__ import annotations

from typing import NamedTuple

from postprocessing.recall import Recalls, Scores

TABLE_I = "Yuan et al., GaLR, TGRS 2022, Table I"
AMFMN = "Yuan et al., AMFMN, TGRS 2022"
LW_MCR = "Yuan et al., LW-MCR, TGRS 2022"
PE_RSITR = "Yuan et al., PE-RSITR, TGRS 2023"
RERUNS = "re-run over five seeds in RRSITR, CVPR 2026"

# Two sets of UCM lists circulate, and all test images of the second are train images of the first.
PE_RSITR_LISTS = "ucm_precomp"
AMFMN_LISTS = "ucm_amfmn_precomp, or a split of their own"


class Published(NamedTuple):
    """One row: mR with its deviation over seeds, and the six recalls where they are known, all in per cent."""

    name: str
    mr: float
    recalls: tuple[float, ...] = ()
    source: str = TABLE_I
    lists: str = ""
    std: float | None = None

    @property
    def scores(self) -> Scores:
        """The scores, with None for what is not known."""
        six = self.recalls or (None,) * 6
        return Scores(Recalls(*six[:3]), Recalls(*six[3:]), self.mr)


# fmt: off
PUBLISHED = {
    "rsitmd": [
        Published("VSE++", 24.83, (10.38, 27.65, 39.60, 7.79, 24.87, 38.67)),
        Published("SCAN t2i", 26.64, (10.18, 28.53, 38.49, 10.10, 28.98, 43.53)),
        Published("SCAN i2t", 26.28, (11.06, 25.88, 39.38, 9.82, 29.38, 42.12)),
        Published("CAMP-triplet", 26.20, (11.73, 26.99, 38.05, 8.27, 27.79, 44.34)),
        Published("CAMP-bce", 22.03, (9.07, 23.01, 33.19, 5.22, 23.32, 38.36)),
        Published("MTFN", 26.92, (10.40, 27.65, 36.28, 9.96, 31.37, 45.84)),
        Published("LW-MCR(b)", 25.55, (9.07, 22.79, 38.05, 6.11, 27.74, 49.56)),
        Published("LW-MCR(d)", 27.79, (10.18, 28.98, 39.82, 7.79, 30.18, 49.78)),
        Published("AMFMN-soft", 28.74, (11.06, 25.88, 39.82, 9.82, 33.94, 51.90)),
        Published("AMFMN-fusion", 29.32, (11.06, 29.20, 38.72, 9.96, 34.03, 52.96)),
        Published("AMFMN-sim", 29.72, (10.63, 24.78, 41.81, 11.51, 34.69, 54.87)),
        Published("GaLR", 31.00, (13.05, 30.09, 42.70, 10.47, 36.34, 53.35)),
        Published("GaLR + rerank", 31.41, (14.82, 31.64, 42.48, 11.15, 36.68, 51.68)),
        Published("AMFMN, 5 seeds", 31.66, source=RERUNS, std=1.28),
        Published("KAMCL, 5 seeds", 32.91, source=RERUNS, std=1.50),
        Published("PIR, 5 seeds", 37.78, source=RERUNS, std=0.81),
        Published("GeoRSCLIP, fine-tuned", 51.81, source="the best known to us; GeoRSCLIP (RS5M), TGRS 2024"),
    ],
    "rsicd": [
        Published("VSE++", 10.43, (3.38, 9.51, 17.46, 2.82, 11.32, 18.10)),
        Published("SCAN t2i", 13.25, (4.39, 10.90, 17.64, 3.91, 16.20, 26.49)),
        Published("SCAN i2t", 14.23, (5.85, 12.89, 19.84, 3.71, 16.40, 26.73)),
        Published("CAMP-triplet", 14.39, (5.12, 12.89, 21.12, 4.15, 15.23, 27.81)),
        Published("CAMP-bce", 11.38, (4.20, 10.24, 15.45, 2.72, 12.76, 22.89)),
        Published("MTFN", 14.81, (5.02, 12.52, 19.74, 4.90, 17.17, 29.49)),
        Published("LW-MCR(b)", 14.52, (4.57, 13.71, 20.11, 4.02, 16.47, 28.23)),
        Published("LW-MCR(d)", 14.66, (3.29, 12.52, 19.93, 4.66, 17.51, 30.02)),
        Published("AMFMN-soft", 16.02, (5.05, 14.53, 21.57, 5.05, 19.74, 31.04)),
        Published("AMFMN-fusion", 16.42, (5.39, 15.08, 23.40, 4.90, 18.28, 31.44)),
        Published("AMFMN-sim", 15.53, (5.21, 14.72, 21.57, 4.08, 17.00, 30.60)),
        Published("GaLR", 18.62, (6.50, 18.91, 29.70, 5.11, 19.57, 31.92)),
        Published("GaLR + rerank", 18.96, (6.59, 19.85, 31.04, 4.69, 19.48, 32.13)),
        Published("AMFMN, 5 seeds", 19.38, source=RERUNS, std=0.36),
        Published("PIR, 5 seeds", 23.66, source=RERUNS, std=0.47),
        Published("GeoRSCLIP, fine-tuned", 38.87, source="the best known to us; GeoRSCLIP (RS5M), TGRS 2024"),
    ],
    "ucm": [
        Published("VSE++", 36.93, (12.38, 44.76, 65.71, 10.10, 31.80, 56.85), AMFMN, AMFMN_LISTS),
        Published("SCAN t2i", 44.67, (), AMFMN, AMFMN_LISTS),
        Published("SCAN i2t", 43.43, (), AMFMN, AMFMN_LISTS),
        Published("CAMP-triplet", 42.22, (), AMFMN, AMFMN_LISTS),
        Published("CAMP-bce", 43.92, (), AMFMN, AMFMN_LISTS),
        Published("MTFN", 44.65, (), AMFMN, AMFMN_LISTS),
        Published("LW-MCR(b)", 41.10, (), LW_MCR, AMFMN_LISTS),
        Published("LW-MCR(d)", 44.68, (), LW_MCR, AMFMN_LISTS),
        Published("LW-MCR(u)", 45.35, (), LW_MCR, AMFMN_LISTS),
        Published("AMFMN-soft", 45.97, (12.86, 51.90, 66.67, 14.19, 51.71, 78.48), AMFMN, AMFMN_LISTS),
        Published("AMFMN-fusion", 46.08, (16.67, 45.71, 68.57, 12.86, 53.24, 79.43), AMFMN, AMFMN_LISTS),
        Published("AMFMN-sim", 45.68, (14.76, 49.52, 68.10, 13.43, 51.81, 76.48), AMFMN, AMFMN_LISTS),
        Published("CABIR", 48.30, (), "Zheng et al., CABIR, Applied Sciences 2022", AMFMN_LISTS),
        Published("CLIP ViT-B/32, not trained", 33.08, (), PE_RSITR, PE_RSITR_LISTS),
        Published("CLIP ViT-B/32, fine-tuned", 52.43, (), PE_RSITR, PE_RSITR_LISTS),
        Published("PE-RSITR", 55.71, (), PE_RSITR, PE_RSITR_LISTS),
        Published("RemoteCLIP ViT-B/32", 56.36, (), "Liu et al., RemoteCLIP, TGRS 2024", "lists not known to us"),
    ],
    "sydney": [
        Published("VSE++", 39.27, (), AMFMN),
        Published("AMFMN-sim", 51.72, (), AMFMN),
    ],
}
# fmt: on
GALLERIES = {"rsitmd": (452, 2260), "rsicd": (1093, 5465), "ucm": (210, 1050)}  # images, captions


def published(dataset: str) -> list[Published]:
    """The rows of a data set, by its name (rsitmd, rsicd, ucm, sydney; a `_precomp` is dropped); of others none."""
    return PUBLISHED.get(_key(dataset), [])


def published_gallery(dataset: str) -> tuple[int | None, int | None]:
    """The images and captions of the test split that the rows are out of, where they are known."""
    return GALLERIES.get(_key(dataset), (None, None))


def _key(dataset: str) -> str:
    return dataset.lower().removesuffix("_precomp")
