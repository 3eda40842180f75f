// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The NK device of a VM: an ivshmem-doorbell function. BAR0 has the doorbell register, BAR2 is the region, MSI-X vector 0
 * says that queue set 0 has something for us.
 */
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "netkernel.h"

#define NK_PCI_VENDOR 0x1af4
#define NK_PCI_DEVICE 0x1110
#define NK_BAR_REGISTERS 0
#define NK_BAR_REGION 2
#define NK_REG_DOORBELL 12
/* The host is peer 0 and listens on one vector. */
#define NK_DOORBELL_HOST (0 << 16 | 0)

struct nk_device {
	struct pci_dev *pdev;
	void __iomem *registers;
	void *region;
	size_t region_len;
	int irq;
};

/* A VM is one guest and has one device; a second one is refused. */
static struct nk_device *nk_the_device;

bool nk_device_ready(void)
{
	return nk_the_device != NULL;
}

void nk_device_ring(void)
{
	/* The register write must not pass the stores that it announces. */
	if (nk_the_device)
		writel(NK_DOORBELL_HOST, nk_the_device->registers + NK_REG_DOORBELL);
}

static irqreturn_t nk_device_interrupt(int irq, void *data)
{
	nk_wait_events();
	return IRQ_HANDLED;
}

/*
 * The region is memory of the host, so it is to be cached, which ioremap_cache and memremap do not give for a BAR:
 * map its page frames as ordinary memory.
 */
static void *nk_map_region(struct pci_dev *pdev, size_t len)
{
	unsigned long first = pci_resource_start(pdev, NK_BAR_REGION) >> PAGE_SHIFT;
	unsigned long i, pages = len >> PAGE_SHIFT;
	unsigned long *pfns;
	void *region;

	pfns = kvmalloc_array(pages, sizeof(*pfns), GFP_KERNEL);
	if (!pfns)
		return NULL;
	for (i = 0; i < pages; i++)
		pfns[i] = first + i;
	region = vmap_pfn(pfns, pages, PAGE_KERNEL);
	kvfree(pfns);
	return region;
}

static int nk_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct nk_device *dev;
	int rc;

	if (nk_the_device)
		return -EBUSY;
	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return -ENOMEM;
	dev->pdev = pdev;
	rc = pci_enable_device_mem(pdev);
	if (rc)
		goto undo_alloc;
	rc = pci_request_regions(pdev, "netkernel");
	if (rc)
		goto undo_enable;
	pci_set_master(pdev);

	rc = -ENOMEM;
	dev->registers = pci_ioremap_bar(pdev, NK_BAR_REGISTERS);
	if (!dev->registers)
		goto undo_regions;
	dev->region_len = pci_resource_len(pdev, NK_BAR_REGION);
	dev->region = nk_map_region(pdev, dev->region_len);
	if (!dev->region)
		goto undo_registers;

	rc = nk_core_open(dev->region, dev->region_len);
	if (rc) {
		dev_err(&pdev->dev, "not an NK device, or of another version: %d\n", rc);
		goto undo_region;
	}
	rc = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX);
	if (rc < 0)
		goto undo_core;
	dev->irq = pci_irq_vector(pdev, 0);
	nk_the_device = dev;
	pci_set_drvdata(pdev, dev);
	rc = request_threaded_irq(dev->irq, NULL, nk_device_interrupt, IRQF_ONESHOT, "netkernel", dev);
	if (rc)
		goto undo_vectors;
	return 0;

undo_vectors:
	nk_the_device = NULL;
	pci_free_irq_vectors(pdev);
undo_core:
	nk_core_close();
undo_region:
	vunmap(dev->region);
undo_registers:
	iounmap(dev->registers);
undo_regions:
	pci_release_regions(pdev);
undo_enable:
	pci_disable_device(pdev);
undo_alloc:
	kfree(dev);
	return rc;
}

/* Reached from module exit alone (bind and unbind are suppressed), when no socket is left. */
static void nk_remove(struct pci_dev *pdev)
{
	struct nk_device *dev = pci_get_drvdata(pdev);

	free_irq(dev->irq, dev);
	pci_free_irq_vectors(pdev);
	nk_core_close();
	nk_the_device = NULL;
	vunmap(dev->region);
	iounmap(dev->registers);
	pci_release_regions(pdev);
	pci_disable_device(pdev);
	kfree(dev);
}

static const struct pci_device_id nk_ids[] = {
	{ PCI_DEVICE(NK_PCI_VENDOR, NK_PCI_DEVICE) },
	{ },
};
MODULE_DEVICE_TABLE(pci, nk_ids);

static struct pci_driver nk_driver = {
	.name = "netkernel",
	.id_table = nk_ids,
	.probe = nk_probe,
	.remove = nk_remove,
	.driver.suppress_bind_attrs = true,
};

int nk_device_init(void)
{
	return pci_register_driver(&nk_driver);
}

void nk_device_exit(void)
{
	pci_unregister_driver(&nk_driver);
}
